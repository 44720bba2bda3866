"""What is wrong with a data set: one sentence a problem, and one message of them all.

A problem is a sentence: the file, what is wrong with it, what to do.
"""

LISTED = 50
ANTIALIASED = "edges are antialiased; for two classes say --label-map 0-127=0,128-255=1"


class Unreadable(Exception):
    """One sentence on why a file cannot be used, without the file's name."""


def listing(title: str, problems: list[str]) -> str:
    """A message of one line a problem, long lists cut.

    A set's masks are antialiased one and all. If many are, the message says it once, at its end:
    a line for each mask would push other problems off the list.
    """
    antialiased = [problem for problem in problems if problem.endswith(ANTIALIASED)]
    last = []
    if len(antialiased) > 3:
        problems = [problem for problem in problems if not problem.endswith(ANTIALIASED)]
        last = [antialiased[0], f"the same in {len(antialiased) - 1} more masks"]
    lines = problems[:LISTED]
    if len(problems) > LISTED:
        lines.append(f"... and {len(problems) - LISTED} more")
    return "\n  ".join([title, *lines, *last])
