"""Files of published weights: found in a folder, read without running their code, fetched into a cache."""

import contextlib
import hashlib
import http.client
import queue
import re
import sys
import threading
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput

TIMEOUT = 8.0  # seconds for a server to answer, and between two pieces of its answer


def weights_file(path: Path) -> Path:
    """The file itself, or the one of that folder as Hugging Face names them."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise BadInput(f"{path} does not exist: give a file of weights, or a folder as Hugging Face saves it")
    found = [path / name for name in ("pytorch_model.bin", "model.safetensors") if (path / name).is_file()]
    if not found:
        sharded = ", saved in shards: save it again in one file" if list(path.glob("*.index.json")) else ""
        raise BadInput(f"{path} holds neither pytorch_model.bin nor model.safetensors{sharded}")
    return found[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict; no code of the file is run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise BadInput(f"{path} needs one more package to read: pip install safetensors") from error
    except Exception as error:  # pickle, zip and torch raise a dozen kinds over a bad file
        raise BadInput(f"{path} is cut short or not a file of tensors: delete it and fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise BadInput(f"{path} is not a plain table of named tensors: save the model's state_dict alone")
    return state


def fetch(url: str, path: Path) -> None:
    """Download a file of weights; it stands under its name only when it is whole and readable."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    print(f"fetching {url}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with answer_of(url) as answer, part.open("wb") as file:
            while piece := answer.read(1 << 20):
                digest.update(piece)
                file.write(piece)
        if (hashed := re.search(r"-([0-9a-f]{8,})\.", path.name)) and not digest.hexdigest().startswith(hashed[1]):
            raise OSError("what came has not the hash that its name says")
        read_weights(part)
        part.replace(path)
    except (OSError, http.client.HTTPException, BadInput) as error:
        reason = "what came cannot be read" if isinstance(error, BadInput) else " ".join(str(error).strip("<>").split())
        raise BadInput(
            f"cannot fetch {url} ({reason}): put that file at {path} yourself, or use --encoder-weights none"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be made holds no part either
            part.unlink(missing_ok=True)


def answer_of(url: str) -> http.client.HTTPResponse:
    """Open a URL, all within TIMEOUT: urllib's own limit leaves out the name look-up and starts anew per address."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "segmentation"})
        try:
            answers.put(urllib.request.urlopen(request, timeout=TIMEOUT))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer in {TIMEOUT:.0f} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
