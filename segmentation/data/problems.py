"""What is wrong with a data set: a sentence for each problem, and one message of them all.

A problem is such a sentence: the file, what is wrong with it, what to do.
"""

LISTED = 50
ANTIALIASED = (
    "edges are antialiased; for two classes say --label-map 0-127=0,128-255=1, "
    "for more write classes.csv"
)


class Unreadable(Exception):
    """One sentence on why a file cannot be used, without the file's name."""


def listing(title: str, problems: list[str]) -> str:
    """A message with a line for each problem, at most LISTED of them.

    Where one mask is antialiased, mostly all masks are. Beyond three the message says so once, at
    its end: a line for each mask would push other problems off the list.
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
