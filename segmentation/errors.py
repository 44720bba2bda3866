"""The one exception a user is meant to read, and how the scripts end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(ValueError):
    """One sentence: what is wrong, in which file, what to do. Scripts print it and exit with 2."""


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

    try:
        main()
    except BadInput as error:
        end_with(str(error))
