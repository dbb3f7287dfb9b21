"""The command line: one thin file per verb, and one place that turns errors into exit codes.

Nothing heavy is imported until a verb begins its work.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

import click

from .. import __version__
from ..errors import RobustmlError
from . import audit, besiege, compare, doctor, federate, harden, init, listing, report, stress, verify
from .options import discard_stdout

__all__ = ["cli", "main"]

DONE, FAILED, USAGE, CRASHED, INTERRUPTED = 0, 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "ROBUSTML"})
@click.version_option(__version__, "--version", prog_name="robustml")
def cli() -> None:
    """Stress-test a classifier and get a verdict that can be replayed.

    Every option can also be set from the environment, as in ROBUSTML_STRESS_SEED=1.

    Exit codes: 0 done; 1 a gate or a verification failed; 2 bad usage or input; 3 the run itself failed
    (finished work is kept); 130 interrupted.
    """


for command in (
    init.init,
    doctor.doctor,
    stress.stress,
    harden.harden,
    federate.federate,
    besiege.besiege,
    audit.audit,
    report.report,
    verify.verify,
    compare.compare,
    listing.list_,
    listing.describe,
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    if "_ROBUSTML_COMPLETE" in os.environ:
        cli.main(prog_name="robustml")
    sys.exit(_run())


def _run() -> int:
    if hasattr(sys.stdout, "reconfigure"):
        # A name that the terminal's encoding lacks must not cost the user the result.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Not cli.main(): it makes exit code 1, a failed gate, of a closed pipe.
        with cli.make_context("robustml", sys.argv[1:]) as context:
            code = cli.invoke(context)
        return code if isinstance(code, int) else DONE
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        return _usage(error)
    except RobustmlError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt as stop:
        _say("; ".join(["interrupted", *map(str, stop.args)]))
        return INTERRUPTED
    except SystemExit as stop:
        _say(f"error: code of the model or of an attack called sys.exit({stop.code!r})")
        return CRASHED
    except BrokenPipeError:
        discard_stdout()
        _say("error: the reader of the output went away")
        return CRASHED
    except MemoryError:
        _say("error: out of memory; try a smaller --batch-size")
        return CRASHED
    except Exception as error:
        # Python's own exit code for this is 1, which would read as a failed gate.
        return _unexpected(error)


def _usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    if len(sys.argv) < 2 and context is not None:
        click.echo(context.get_help(), err=True)
        return USAGE
    message = error.format_message().rstrip(".")
    message = message.replace(". Did you", "; did you").replace(". (Did you", " (did you")
    help_ = f" (see {context.command_path} --help)" if context is not None else ""
    _say(f"error: {message[:1].lower()}{message[1:]}{help_}")
    return USAGE


def _unexpected(error: Exception) -> int:
    if os.environ.get("ROBUSTML_TRACEBACK"):
        import traceback

        traceback.print_exc()
        return CRASHED
    text = " ".join(str(error).split())[:300]
    _say(f"error: unexpected {type(error).__name__}: {text} (set ROBUSTML_TRACEBACK=1 to see where)")
    return CRASHED


def _say(text: str) -> None:
    from ..report.text import plain

    with contextlib.suppress(OSError):
        print(plain(text), file=sys.stderr, flush=True)
