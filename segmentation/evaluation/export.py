"""Models as files for other programs: torch.export's .pt2, ONNX's .onnx, Hugging Face's folder."""

import copy
import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config

from ..errors import BadInput, writing
from ..models.layers import SMALLEST_SIDE, Normalise
from ..models.mix_transformer import NORM_EPS
from ..models.segformer import MLPDecoder, SegFormer

TOLERANCE = 1e-4  # of the largest logit: what a written file may differ by
SIZES = ((1, 32, 32), (2, 97, 65))  # N, H, W of the images that compare it with the model
ONNX_PACKAGES = ("onnx", "onnxscript")

Runner = Callable[[Tensor], Tensor]  # images -> logits, by what was written


def export(model: nn.Module, file: str | Path, meta: dict | None = None) -> str:
    """Write a model for other programs; a line on the file.

    file: .pt2 for torch.export.load, .onnx, or a folder for transformers, which takes SegFormers
        with the decoder mlp. The first two take `image`, N x 3 x H x W float in [0, 1], N, H and W
        free from 32 pixels up, and give `logits` N x K x H x W.
    meta: a checkpoint's dict, for the file's metadata: classes, palette, the image size of the
        training, licences of the weights it started from.

    The model stays as it is, in training mode too. The file is loaded again and compared with it;
    an .onnx is checked for its form alone where onnxruntime is not installed.
    BadInput, with nothing written, if the file cannot be, or differs from the model.
    """
    file = Path(os.path.realpath(file))  # a link stays one
    check_target(model, file)
    facts = facts_of(meta or {})
    model = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    writers = {".pt2": write_pt2, ".onnx": write_onnx, "": write_huggingface}
    write: Callable[[Any, Path, dict], Runner | None] = writers[file.suffix]
    with (
        writing("--export", file),
        tempfile.TemporaryDirectory(prefix=".writing", dir=file.parent) as folder,
        torch.no_grad(),
    ):
        written = Path(folder, file.name)
        run = write(model, written, facts)
        if run:
            compare(model, run, file)
        names = sorted(os.listdir(folder))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        for name in reversed(names):  # weights beside a graph of 2 GB before the graph
            os.replace(Path(folder, name), file.with_name(name))
    checked = "compared with the model" if run else "checked for form only: no onnxruntime"
    files = " and ".join(str(file.with_name(name)) for name in names)
    taken = f"image N x {channels_of(model)} x H x W in [0, 1], H and W from {SMALLEST_SIDE}"
    return f"{files}: {size / 1e6:.1f} MB, {taken} -> logits N x K x H x W, {checked}"


def check_target(model: nn.Module, file: Path) -> None:
    """BadInput if the model cannot be written to this file."""
    if not file.parent.is_dir():
        raise BadInput(f"--export {file}: there is no folder {file.parent}: make it first")
    if file.suffix == ".onnx":
        missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
        if missing:
            raise BadInput(f"--export {file} needs more packages: pip install {' '.join(missing)}")
    elif file.suffix == "" and not file.name.startswith("."):
        if not isinstance(model, SegFormer) or not isinstance(model.decoder, MLPDecoder):
            raise BadInput(
                f"--export {file}: Hugging Face's format is for SegFormer with the decoder mlp: "
                "write .pt2 or .onnx"
            )
        eps = min(m.eps for m in model.modules() if isinstance(m, nn.LayerNorm))
        if eps != NORM_EPS:
            raise BadInput(
                f"--export {file}: this checkpoint's norms have eps {eps:g}, "
                f"and transformers computes with {NORM_EPS}: write .pt2 or .onnx"
            )
        if file.exists() and (not file.is_dir() or any(file.iterdir())):
            raise BadInput(f"--export {file} is not an empty folder: choose another")
    elif file.suffix != ".pt2":
        raise BadInput(
            f"--export {file}: {file.suffix or file.name} is not written here: "
            "give a name ending in .pt2 or .onnx, or without ending a folder for Hugging Face"
        )


def facts_of(meta: dict) -> dict:
    """What the file tells of the model: classes, palette, image size, licences."""
    about = meta.get("encoder_weights") or {}
    records = filter(None, about.get("members", [about]))
    licences = [record["licence"] for record in records if record.get("licence")]
    facts = {
        "classes": meta.get("classes"),
        "palette": meta.get("palette"),
        "image_size": meta.get("data", {}).get("image_size"),
        "licence": "; ".join(licences),
    }
    return {name: fact for name, fact in facts.items() if fact}


def channels_of(model: nn.Module) -> int:
    """Of the images that the model takes."""
    return next(m.mean.numel() for m in model.modules() if isinstance(m, Normalise))


def trace(model: nn.Module) -> torch.export.ExportedProgram:
    """The model's graph. BadInput where this torch cannot trace one for every N, H and W."""
    Dim = torch.export.Dim
    free = {0: Dim("N", min=1), 2: Dim("H", min=SMALLEST_SIDE), 3: Dim("W", min=SMALLEST_SIDE)}
    settings: Any = _config
    image = torch.rand(2, channels_of(model), 96, 128)
    try:
        with settings.patch(backed_size_oblivious=True):  # a side of 1 is no case of its own
            return torch.export.export(
                model, (image,), dynamic_shapes={"image": free}, strict=False
            )
    except (AttributeError, RuntimeError) as error:  # no such setting, or no such proof
        raise BadInput(
            f"torch {torch.__version__} cannot write one graph for all image sizes: "
            "export with a newer torch"
        ) from error


def write_pt2(model: nn.Module, file: Path, facts: dict) -> Runner:
    buffer = io.BytesIO()  # torch's own writing ends the process where the disk is full
    torch.export.save(trace(model), buffer, extra_files={"metadata.json": json.dumps(facts)})
    file.write_bytes(buffer.getbuffer())
    return torch.export.load(file).module()


def write_onnx(model: nn.Module, file: Path, facts: dict) -> Runner | None:
    """See `export`. None without onnxruntime: then the file's form alone is checked."""
    import onnx

    program = torch.onnx.export(
        trace(model),
        input_names=["image"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    texts = {name: json.dumps(fact) for name, fact in facts.items()}
    program.model.metadata_props.update(texts)
    program.save(file)
    onnx.checker.check_model(file)
    if not importlib.util.find_spec("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def write_huggingface(model: SegFormer, folder: Path, facts: dict) -> Runner:
    model.save_huggingface(folder, facts.get("classes"))
    add_to(folder / "config.json", facts=facts)
    if size := facts.get("image_size"):
        size = dict(zip(("height", "width"), size, strict=True))
        add_to(folder / "preprocessor_config.json", do_resize=True, size=size)
    return SegFormer.from_huggingface(folder)


def add_to(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries, indent=2))


def compare(model: nn.Module, run: Runner, file: Path) -> None:
    """BadInput unless what was written has the model's logits."""
    for N, H, W in SIZES:
        image = torch.rand(N, channels_of(model), H, W)
        expected = model(image)
        error = (run(image) - expected).abs().max() / expected.abs().max()
        if not error <= TOLERANCE:
            raise BadInput(
                f"--export {file}: at {H}x{W} its logits differ from the model's by "
                f"{error:.1g} of the largest, so it was not kept: write another format"
            )
