"""A store of uint8 arrays that are mapped into memory, so that every file is decoded once.

Ranks and workers share the arrays through the page cache, and a crop reads its own window alone.
An entry is a folder (array.npy, record.json) that appears by one rename: it is complete or absent,
and two processes may write the same one. Deleting the cache folder is always safe; `tidy` keeps it
in bounds.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import BadInput

VERSION = 2  # part of every key: raise it when decoding changes
DAYS = 30  # that an unused entry is kept
SHARE = 0.5  # of the disk that is free or the cache's own, beyond which entries go earlier
WORTH_SAYING = 2**30  # bytes


def entry_of(*parts: object) -> Path:
    """The folder of an entry. parts: all that its array depends on; the name is their digest."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = repr((VERSION, *parts)).encode()
    return Path(base) / "segmentation" / hashlib.blake2b(key, digest_size=16).hexdigest()


def load_record(entry: Path) -> dict[str, Any] | None:
    """What `store` returned for this entry; None if it is absent or incomplete.

    Reads no pixel. The time of record.json becomes that of this use.
    """
    file = entry / "record.json"
    try:
        record = json.loads(file.read_text())
        whole = (entry / "array.npy").stat().st_size == record["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with contextlib.suppress(OSError):  # a cache that is only read
        os.utime(file)
    return record if whole else None


def load_array(entry: Path) -> np.ndarray:
    """The array of an entry, mapped into memory, read-only."""
    return np.load(entry / "array.npy", mmap_mode="r")


def store(
    entry: Path,
    array: np.ndarray,
    **facts: Any,
) -> dict[str, Any]:
    """Write an array with facts about it.

    Returns its record: the facts, the array's shape and the bytes of its file.
    """
    folder = entry.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="new-", dir=folder, ignore_cleanup_errors=True) as name:
            temporary = Path(name)
            file = temporary / "array.npy"
            np.save(file, array)
            record = {**facts, "shape": array.shape, "bytes": file.stat().st_size}
            (temporary / "record.json").write_text(json.dumps(record))
            _publish(temporary, entry)
    except OSError as error:
        reason = error.strerror or "the disk is full"  # numpy gives no reason for a short write
        raise BadInput(
            f"{folder}: cannot write the cache ({reason}); free some space, or set XDG_CACHE_HOME"
        ) from None
    return record


def _publish(temporary: Path, entry: Path) -> None:
    """Rename a finished entry to its place, unless another process has put a whole one there."""
    if entry.exists() and load_record(entry) is None:
        shutil.rmtree(entry, ignore_errors=True)
    try:
        temporary.rename(entry)
    except OSError:
        if load_record(entry) is None:
            raise


def tidy(began: float) -> str:
    """Remove what was unused for DAYS, then what was unused longest while the cache is too large.

    began: seconds of time.time(); what was used since then stays. Gives a sentence on what is left,
    if that is worth one, else "".
    """
    folder = entry_of().parent
    in_use = began - 60  # clocks of file servers differ
    entries = []
    for entry in folder.glob("*"):  # none where there is no folder
        with contextlib.suppress(OSError):  # another process may remove it too
            record = entry / "record.json"
            used = (record if record.exists() else entry).stat().st_mtime
            size = sum(file.stat().st_size for file in entry.iterdir())
            entries.append((used, size, entry))
    total = sum(size for _, size, _ in entries)
    free = shutil.disk_usage(folder).free if entries else 0
    for used, size, entry in sorted(entries):
        too_old = used < began - 86400 * DAYS
        too_much = total > SHARE * (free + total) and not entry.name.startswith("new-")
        if used < in_use and (too_old or too_much):
            shutil.rmtree(entry, ignore_errors=True)
            total -= size
            free += size
    if total < WORTH_SAYING:
        return ""
    return f"cache: {folder} holds {total / 2**30:.1f} GiB; deleting it is safe"
