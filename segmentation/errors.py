"""The one exception a user is meant to read."""


class BadInput(ValueError):
    """One sentence that says what is wrong, in which file, and what to do. Scripts print it and exit with 2."""
