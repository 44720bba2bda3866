"""The one exception a user is meant to read, and how the scripts end."""

import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path


class BadInput(ValueError, ArgumentTypeError):
    """One sentence: what is wrong, in which file, what to do. Scripts print it and exit with 2.

    Raised by the type of a flag, argparse prints it.
    """


@contextmanager
def writing(flag: str, path: str | Path) -> Iterator[None]:
    """A write that fails inside this context becomes a BadInput with the flag, path and reason."""
    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{flag} {path} cannot be written ({reason}): choose another") from error


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Run a script's main: BadInput becomes one message, whichever rank has it, and exit code 2."""
    from .distributed import end_with  # which needs this file

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names hold what no terminal shows
    try:
        main()
    except BadInput as error:
        end_with(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:
        # Python flushes once more at its end, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit("what read the output has ended")
