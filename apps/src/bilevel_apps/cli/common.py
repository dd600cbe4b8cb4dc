"""What all commands share: one line for a mistake, an exit status, and `--debug`."""

from __future__ import annotations

import io
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from bilevel_apps.errors import PARAMETER, InputError, RunError
from bilevel_apps.system.plugins import import_asked

__all__ = [
    "Data",
    "Debug",
    "Device",
    "EpisodeCount",
    "Json",
    "Query",
    "Run",
    "Seed",
    "Shot",
    "Split",
    "Steps",
    "Threads",
    "Track",
    "Trained",
    "Way",
    "make_app",
    "run_app",
    "steps_of",
    "with_flags",
]

# The flags of parameters that are not called like them.
FLAGS = {"assignments": "set", "axes": "sweep", "runs": "run", "options": "option"}

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="Small problems are slower with more.")]
Track = Annotated[bool, typer.Option("--track", help="Add the result to the run in MLflow.")]

Run = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder of bilevel-train, or pretrained:TAG.")
]
Trained = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="A folder of bilevel-train, a checkpoint, or pretrained:TAG."
    ),
]

# Episodes; those without a default of their own are the run's.
Data = Annotated[Path | None, typer.Option(metavar="FILE.h5", help="Another store than the run's.")]
Split = Annotated[str, typer.Option(help="train, val or test.")]
EpisodeCount = Annotated[int, typer.Option(min=2, help="How many episodes.")]
Way = Annotated[int | None, typer.Option(min=1, help="Classes an episode.")]
Shot = Annotated[int | None, typer.Option(min=1, help="Support images a class.")]
Query = Annotated[int | None, typer.Option(min=1, help="Query images a class.")]
Shifts = Annotated[
    int,
    typer.Option(
        metavar="PIXELS",
        min=0,
        max=64,
        help="Average features over nine places of the picture, so far apart; nine times the work.",
    ),
]
Steps = Annotated[
    str | None,
    typer.Option(
        metavar="T|optimum", help="Inner steps of the head, or its optimum; else the run's."
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        help="Which episodes; with val, the run's own seed gives those that chose its checkpoint.",
    ),
]


def steps_of(text: str) -> tuple[int | None, ...]:
    """Return the T of `--steps`, each once, in order; None, the last, is the optimum.

    Raises:
        InputError: other words.
    """
    words = {word.strip() for word in text.split(",")}
    numbers = words - {"optimum"}
    if not all(word.isdecimal() and len(word) < 10 for word in numbers):
        raise InputError(
            f"--steps {text}: expected whole numbers ≥ 0 with commas between, such as 1,3,5,8, or "
            "optimum"
        )
    return (*sorted({int(word) for word in numbers}), *[None] * ("optimum" in words))


def with_flags(message: str) -> str:
    """Return the message of an error with flags in the place of parameters."""

    def flag(found: re.Match[str]) -> str:
        name = FLAGS.get(found[1], found[1].replace("_", "-"))
        return f"--{name} " if found[2] else f"--{name}"

    return PARAMETER.sub(flag, message)


def make_app(help_text: str) -> typer.Typer:
    """Return an app whose own errors are plain lines."""
    return typer.Typer(help=help_text, rich_markup_mode=None, add_completion=False)


def print_error(line: str, _status: int) -> None:
    """Print an error on stderr."""
    print(line, file=sys.stderr)


def run_app(app: typer.Typer, report: Callable[[str, int], None] = print_error) -> None:
    """Run a command and leave the process with its status.

    0: done. 1: the work failed. 2: the input cannot be used. 130: ended by Ctrl-C or SIGTERM. An
    error is one line on stderr that begins with `error:`. A command without arguments prints its
    help.

    Args:
        app: the command.
        report: takes the line of an error, and the status.
    """
    _prepare_process()
    try:
        _check_arguments(sys.argv[1:])
        import_asked()
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        _fail(report, 2, getattr(error, "format_message", error.__str__)())
    except InputError as error:
        _fail(report, 2, with_flags(str(error)))
    except RunError as error:
        _fail(report, 1, with_flags(str(error)))
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    except Exception as error:  # a library's error, or ours: still one line
        from bilevel_data import DataError, WriteError

        if isinstance(error, DataError):
            _fail(report, 1 if isinstance(error, WriteError) else 2, with_flags(str(error)))
        _fail(report, 1, f"{type(error).__name__}: {error} (--debug shows the traceback)")
    raise SystemExit(status if isinstance(status, int) else 0)


def _prepare_process() -> None:
    """Let SIGTERM clean up as Ctrl-C does, and let no result be lost to a terminal's alphabet."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_arguments(arguments: list[str]) -> None:
    """Refuse a name that is not text: it could not be written into a record or a table.

    Raises:
        InputError: there is one.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{argument!a}: a name that is not UTF-8: rename it, or choose another"
            ) from None


def _fail(report: Callable[[str, int], None], status: int, message: str) -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()
    # Names and values of a file that somebody else made are in it: they must not steer a terminal.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    report(f"error: {line}", status)
    raise SystemExit(status)
