"""`python -m robustml` is the command `robustml`."""

from .cli import main

main()
