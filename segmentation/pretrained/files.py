"""Files of published weights: find in a folder, read without running code, fetch into a cache."""

import contextlib
import http.client
import re
import socket
import sys
import uuid
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadInput

TIMEOUT = 8.0  # seconds for a server to connect, and between two pieces of its answer


def weights_file(path: Path) -> Path:
    """The file itself, or the one of that folder as Hugging Face names them."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise BadInput(
            f"{path} does not exist: give a file of weights, or a folder as Hugging Face saves it"
        )
    for name in ("pytorch_model.bin", "model.safetensors"):
        if (path / name).is_file():
            return path / name
    sharded = any(path.glob("*.index.json"))
    advice = ", saved in shards: save it again in one file" if sharded else ""
    raise BadInput(f"{path} holds neither pytorch_model.bin nor model.safetensors{advice}")


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
        raise BadInput(
            f"{path} is cut short or not a file of tensors: delete it and fetch it again"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise BadInput(
            f"{path} is not a plain table of named tensors: save the model's state_dict alone"
        )
    return state


def fetch(url: str, path: Path) -> None:
    """Download a file of weights; it gets its name only when it is whole and readable.

    A name such as resnet18-f37072fd.pth holds the first digits of the sha256, which must fit.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    hashed = re.search(r"-([0-9a-f]{8,})\.", path.name)
    timeout = socket.getdefaulttimeout()
    print(f"fetching {url}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(TIMEOUT)  # torch.hub sets none
        digits = hashed and hashed[1]
        torch.hub.download_url_to_file(url, str(part), digits, progress=sys.stderr.isatty())
        read_weights(part)
        part.replace(path)
    except (OSError, RuntimeError, http.client.HTTPException, BadInput) as error:
        reason = " ".join(str(error).strip("<>").split())
        if isinstance(error, BadInput):
            reason = "what came cannot be read"
        raise BadInput(
            f"cannot fetch {url} ({reason}): put that file at {path} yourself, "
            "or use --encoder-weights none"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
        with contextlib.suppress(OSError):  # no folder, no part
            part.unlink(missing_ok=True)
