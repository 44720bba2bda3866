"""The one exception a user is meant to read, and how the scripts end."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(ValueError):
    """One sentence that says what is wrong, in which file, and what to do. Scripts print it and exit with 2."""


@contextmanager
def writing(flag: str, path: str | Path) -> Iterator[None]:
    """What cannot be written within becomes a BadInput that names the flag, the path, the reason."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{flag} {path} cannot be written ({reason}): choose another") from error


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Run a script's main: BadInput becomes one message (of the first rank) and exit code 2."""
    try:
        main()
    except BadInput as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
