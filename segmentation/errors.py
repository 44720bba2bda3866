"""The one exception a user is meant to read, and how the scripts end."""

from collections.abc import Callable


class BadInput(ValueError):
    """One sentence that says what is wrong, in which file, and what to do. Scripts print it and exit with 2."""


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Run a script's main: BadInput becomes one message, whichever rank has it, and exit code 2."""
    from .distributed import end_with  # which needs this file

    try:
        main()
    except BadInput as error:
        end_with(str(error))
