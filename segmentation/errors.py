"""The one exception a user is meant to read, and how the scripts end."""

import os
import sys
from collections.abc import Callable


class BadInput(ValueError):
    """One sentence that says what is wrong, in which file, and what to do. Scripts print it and exit with 2."""


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Run a script's main: BadInput becomes one message (of the first rank) and exit code 2."""
    try:
        main()
    except BadInput as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
