"""Files of weights: find in a folder, read without running code, fetch into a cache, write.

A .safetensors file is eight bytes (the length of its header), a JSON header {name: {dtype, shape,
data_offsets}}, and the tensors' bytes one behind the other.
"""

import contextlib
import hashlib
import http.client
import json
import math
import os
import re
import socket
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import first_bytes, is_checkpoint, read_plain, starting_weights, trained_on
from ..errors import BadInput
from ..files import write_atomically

TIMEOUT = 8.0  # seconds for a server to connect, and between two pieces of its answer
INDEX = ".index.json"  # of shards
SAFETENSORS = "model.safetensors"
# As transformers looks for them.
NAMES = (SAFETENSORS, SAFETENSORS + INDEX, "pytorch_model.bin", "pytorch_model.bin" + INDEX)
WRAPPERS = ("state_dict", "model", "net", "model_state_dict")  # keys that hold the table
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, others
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FILE_LICENCE = "not stated in the file; NVIDIA's own MiT weights are non-commercial"
NO_LICENCE = "none: trained from random numbers"

State = dict[str, Tensor]  # tensors by their names, as a state_dict has them


@dataclass(frozen=True)
class Weights:
    """What a file, or the shards of one, hold."""

    path: Path  # the file, or the index of its shards
    files: list[Path]
    tensors: State
    checkpoint: dict | None = None  # the whole file, if it is of this project

    @property
    def record(self) -> dict[str, Any]:
        """source, path, sha256 (of each shard) and licence, for a checkpoint. Reads the files.

        Of this project's own checkpoints also what they started from, and the names of all images
        that they have seen.
        """
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in self.files]
        about: dict[str, Any] = {
            "source": "file",
            "path": str(self.path),
            "sha256": digests[0] if len(digests) == 1 else digests,
            "licence": stated_licence(self.path.parent),
        }
        if not self.checkpoint:
            return about
        earlier = self.checkpoint.get("encoder_weights")
        licences = [each.get("licence", FILE_LICENCE) for each in starting_weights(earlier)]
        return about | {
            "licence": "; ".join(licences) or NO_LICENCE,
            "trained_from": earlier,
            "seen": sorted(trained_on(self.checkpoint)),
        }


def open_weights(source: str | Path) -> Weights:
    """Read a file, or that of a folder as Hugging Face or its cache has it.

    BadInput for its true reason, if it cannot be read or holds more than named tensors.
    """
    path = weights_file(Path(source))
    files = shards_of(path) if path.name.endswith(INDEX) else [path]
    contents = [read_file(file) for file in files]
    if is_checkpoint(contents[0]):
        return Weights(path, files, contents[0]["model"], contents[0])
    tensors: State = {}
    for table in map(table_of, contents, files):
        tensors |= table
    return Weights(path, files, without_prefixes(tensors))


def weights_file(path: Path) -> Path:
    """The file itself, or the one of that folder, which may be the hub's cache of a model."""
    if not path.is_dir():
        return path  # if it is not there, reading it says so
    main, snapshots = path / "refs" / "main", list(path.glob("snapshots/*"))
    if main.is_file():
        path = path / "snapshots" / main.read_text().strip()
    elif len(snapshots) == 1:
        path = snapshots[0]
    for name in NAMES:
        if os.path.lexists(path / name):  # a broken link too, which reading tells
            return path / name
    folders = {file.parent.name for file in path.glob("*/*") if file.name in NAMES}
    advice = f"name one of its folders {', '.join(sorted(folders))}" if folders else "name another"
    raise BadInput(f"{path} holds neither model.safetensors nor pytorch_model.bin: {advice}")


def shards_of(index: Path) -> list[Path]:
    """The files that an index names. BadInput if one is not there."""
    content = read_json(index)
    try:
        names = sorted(set(content["weight_map"].values()))
        files = [index.with_name(name) for name in names]  # ValueError for a name with a folder
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{index} has no weight_map of files beside it: fetch it again") from error
    gone = [file.name for file in files if not file.exists()]
    if gone or not files:
        raise BadInput(f"{index} names shards that are not there: fetch {', '.join(gone)} too")
    return files


def read_json(path: Path) -> dict:
    """What the file holds, nothing where there is none. BadInput if it cannot be read."""
    if not os.path.lexists(path):
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{path} is not JSON that can be read: fetch it again") from error


def read_file(path: Path) -> Any:
    """What safetensors or torch.save wrote, whatever the file's name; no code of it is run."""
    if first_bytes(path)[8:9] == b"{":
        return read_safetensors(path)
    return read_plain(path)


def read_safetensors(path: Path) -> State:
    """BadInput unless the tensors named in the header fill the file."""
    content = path.read_bytes()
    start = end = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    try:
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype = DTYPES[entry["dtype"]]
            offset, size = end - start, math.prod(entry["shape"]) * dtype.itemsize
            if entry["data_offsets"] != [offset, offset + size]:
                raise ValueError(f"the offsets of {name}")
            data = bytearray(content[end : end + size])
            end += size
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            tensors[name] = flat.view(entry["shape"])
        if end != len(content):
            raise ValueError("bytes behind the last tensor")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        problem = "is cut short: copy or fetch it again"
        if end <= len(content):
            problem = f"cannot be read ({error}): fetch it again, or save it in float32"
        raise BadInput(f"{path} {problem}") from error
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors atomically. OSError if it cannot be written."""
    dtypes = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    parts = []
    end = 0
    # Wide numbers first, so that each stands at a multiple of its own width.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].itemsize):
        part = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        begin, end = end, end + len(part)
        shape = list(tensor.shape)
        header[name] = {"dtype": dtypes[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
        parts.append(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, len(text).to_bytes(8, "little") + text + b"".join(parts))


def table_of(content: Any, path: Path) -> State:
    """The named tensors in a file, which training tools put under a key of their own."""
    table: dict = content if isinstance(content, dict) else {f"a {type(content).__name__}": None}
    for key in WRAPPERS:
        table = table[key] if isinstance(table.get(key), dict) else table
    other = [
        str(name)
        for name, value in table.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if other:
        raise BadInput(
            f"{path} is not a plain table of named tensors: it holds {shorten(other, 3)}; "
            "save the model's state_dict alone"
        )
    return table


def without_prefixes(tensors: State) -> State:
    """Names without what wrappers of models put before all of them."""
    for prefix in PREFIXES * len(PREFIXES):  # in any order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def stated_licence(folder: Path) -> str:
    """The licence that a model card beside the weights names in its front matter."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return FILE_LICENCE
    found = re.match(r"---\n(?:(?!---).*\n)*?license: *(\S.*)", card)
    return found[1].strip("\"' ") if found else FILE_LICENCE


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download a file of weights; it gets its name only when it is whole and readable.

    sha256: the file's, or its first digits.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    timeout = socket.getdefaulttimeout()
    print(f"fetching {url}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(TIMEOUT)  # torch.hub sets none
        torch.hub.download_url_to_file(url, str(part), sha256, progress=sys.stderr.isatty())
        part.replace(path)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).strip("<>").split())
        raise BadInput(
            f"cannot fetch {url} ({reason}): put that file at {path} yourself, "
            "or use --encoder-weights none"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
        with contextlib.suppress(OSError):  # no folder, no part
            part.unlink(missing_ok=True)


def shorten(names: list[str], limit: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
