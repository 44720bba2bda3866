"""Files that are the old one or the new one, never a part."""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a temporary file in the same folder, flush, fsync, rename. Text becomes UTF-8.

    OSError (a full disk, no permission) leaves the old file as it was and no temporary one.
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")  # file names may not be Unicode
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # once it is renamed, there is none


def write_csv(path: str | Path, rows: Iterable[Iterable]) -> None:
    """Write rows as comma separated values, atomically, floats in full precision."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue())
