"""The command line: one thin file per verb, and one place that turns errors into exit codes.

Nothing heavy is imported until a verb begins its work.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from .. import __version__
from ..errors import RobustmlError
from . import compare, doctor, init, listing, report, stress, verify

__all__ = ["cli", "main"]

DONE, FAILED, USAGE, CRASHED, INTERRUPTED = 0, 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "ROBUSTML"})
@click.version_option(__version__, "--version", prog_name="robustml")
def cli() -> None:
    """Stress-test a classifier and get a verdict that can be replayed.

    Exit codes: 0 done; 1 a gate or a verification failed; 2 bad usage or input; 3 the run itself failed
    (finished work is kept); 130 interrupted.
    """


for command in (
    init.init,
    doctor.doctor,
    stress.stress,
    report.report,
    verify.verify,
    compare.compare,
    listing.list_,
    listing.describe,
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(_run())


def _run() -> int:
    try:
        code = cli.main(standalone_mode=False, prog_name="robustml")
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except RobustmlError as error:
        _say(f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout went away, as `head` does; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except MemoryError:
        _say("error: out of memory; try a smaller --batch-size")
        return CRASHED
    except Exception as error:
        # Python's own exit code for this is 1, which would read as a failed gate.
        if os.environ.get("ROBUSTML_TRACEBACK"):
            raise SystemExit(_with_traceback()) from error
        text = " ".join(str(error).split())[:300]
        _say(f"error: unexpected {type(error).__name__}: {text} (set ROBUSTML_TRACEBACK=1 to see where)")
        return CRASHED


def _with_traceback() -> int:
    import traceback

    traceback.print_exc()
    return CRASHED


def _say(text: str) -> None:
    from ..report.text import plain

    print(plain(text), file=sys.stderr, flush=True)
