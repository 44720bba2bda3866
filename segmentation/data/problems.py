"""What is wrong with a data set: one sentence a problem, and one message of them all."""

from typing import NamedTuple

LISTED = 50


class Unreadable(Exception):
    """One sentence on why a file cannot be used, without the file's name."""


class Antialiased(Unreadable):
    """Said of a mask with soft edges: the other masks of its set will have them too."""


class Problem(NamedTuple):
    """One sentence: the file, what is wrong with it, what to do."""

    sentence: str
    antialiased: bool = False


def listing(title: str, problems: list[Problem]) -> str:
    """A message of one line a problem, long lists cut.

    Antialiasing that many masks share is printed once, at the end, so that it hides nothing.
    """
    shared = [problem for problem in problems if problem.antialiased]
    last = []
    if len(shared) > 3:
        problems = [problem for problem in problems if not problem.antialiased]
        last = [shared[0].sentence, f"the same in {len(shared) - 1} more masks"]
    lines = [problem.sentence for problem in problems[:LISTED]]
    if len(problems) > LISTED:
        lines.append(f"... and {len(problems) - LISTED} more")
    return "\n  ".join([title, *lines, *last])
