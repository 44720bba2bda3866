"""Files that are the old one or the new one, never a part."""

import contextlib
import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: str | Path, content: bytes | memoryview) -> None:
    """Write a temporary file in the same folder, flush, fsync, rename.

    OSError (a full disk, no permission) leaves the old file as it was and no temporary one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # once it is renamed, there is none
            temporary.unlink()


def write_csv(path: str | Path, rows: Iterable[Iterable]) -> None:
    """Write rows as comma separated values, atomically, floats in full precision."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())
