"""Files for other programs: the model's logits at every size, facts inside, refusals in time.

Tracing takes half a minute, so the default suite runs what is traced without a trace.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image
from references import refused, shuffled
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode

from segmentation.checkpoint import save_checkpoint
from segmentation.evaluation import export as exports
from segmentation.evaluation.export import check_target, export
from segmentation.models import build_model, mix_transformer

CLASSES = ["roof", "lawn", "tree"]
META = {
    "classes": CLASSES,
    "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
    "data": {"image_size": [48, 64]},
    "encoder_weights": {"members": [{"licence": "MIT"}, None, {"licence": "NVIDIA's"}]},
}
FACTS = {
    "classes": CLASSES,
    "palette": META["palette"],
    "image_size": [48, 64],
    "licence": "MIT; NVIDIA's",
}
SHAPES = "32x32 33x47 32x200 61x61 64x96 97x129 128x128 255x257 40x33"
NORMS = {"norm_eps": 1e-5}

traces = pytest.mark.skipif(
    not hasattr(_config, "backed_size_oblivious"), reason="this torch traces for some sizes alone"
)


@pytest.fixture(autouse=True)
def one_block_a_stage(monkeypatch):
    """Tracing takes time for each block; sizes meet every kind of layer in the first."""
    monkeypatch.setitem(mix_transformer.VARIANTS, "b0", ((32, 64, 160, 256), (1, 1, 1, 1)))


def make(kind: str) -> nn.Module:
    members = [{"model": "unet", "num_classes": 3}, {"model": "segformer", "num_classes": 3}]
    config = {
        "unet": members[0],
        "conv": members[1],
        "mlp": {**members[1], "decoder": "mlp", **NORMS},
        "uformer": {
            "model": "uformer",
            "members": members,
            "weights": [[0.0, 0.3, 1.0], [1.0, 0.7, 0.0]],
        },
    }[kind]
    torch.manual_seed(0)
    return shuffled(build_model(config))


def images(shape: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, *map(int, shape.split("x")), generator=generator)


@torch.no_grad()
def assert_same_logits(model: nn.Module, run, shapes: str = SHAPES) -> None:
    """Within 1e-4 of the largest, and the argmax where the two best differ by more than that."""
    for place, shape in enumerate(shapes.split()):
        image = images(shape, 1 + place % 3)
        expected, found = model(image), run(image)
        error = (found - expected).abs().max()
        assert found.shape == expected.shape
        assert error <= 1e-4 * expected.abs().max(), shape
        best, second = expected.topk(2, dim=1).values.unbind(1)
        clear = best - second > 2 * error
        assert torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])


ALONE = """
import importlib.util, json, torch
assert importlib.util.find_spec("segmentation") is None
facts = {"metadata.json": ""}
run = torch.export.load("model.pt2", extra_files=facts).module()
logits = [run(image).detach() for image in torch.load("images.pt")]
torch.save([json.loads(facts["metadata.json"]), logits], "found.pt")
"""


@traces
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv", "mlp", "unet", "uformer"])
def test_one_graph_serves_every_size_where_the_project_is_not_installed(kind, tmp_path):
    model = make(kind).train()
    line = export(model, tmp_path / "model.pt2", META)
    assert all(module.training for module in model.modules())
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert line.startswith(f"{tmp_path / 'model.pt2'}: ") and "compared with the model" in line
    batches = [images(shape, 1 + place % 3) for place, shape in enumerate(SHAPES.split())]
    torch.save(batches, tmp_path / "images.pt")
    paths = [path for path in sys.path if path.endswith("site-packages")]
    start = f"import sys; sys.path += {paths}"  # -S: no site, which would add editable projects
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + ALONE], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    facts, found = torch.load(tmp_path / "found.pt")
    assert facts == FACTS
    answers = iter(found)
    assert_same_logits(model.eval(), lambda image: next(answers))


@pytest.mark.parametrize("kind", ["conv", "mlp"])
@torch.no_grad()
def test_what_is_traced_computes_what_eager_does(kind, monkeypatch):
    """Modules choose another formulation while they are exported; here it runs without a trace."""
    model = make(kind).double()
    chosen = []

    def compiling() -> bool:
        chosen.append(True)
        return True

    for place, shape in enumerate("32x32 33x47 32x200 61x61 97x129".split()):
        image = images(shape, 1 + place % 3).double()
        expected = model(image)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", compiling)
            found = model(image)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert chosen


class Operators(TorchDispatchMode):
    """Counts what a graph would be slow with: see docs/export.md."""

    def __init__(self):
        super().__init__()
        self.slow = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "convolution" and args[6]:
            self.slow.append("transposed convolution")
        if name == "native_layer_norm" and args[0].dim() != 3:
            self.slow.append("norm of a map, not of tokens")
        if name == "gelu" and args[0].shape[1] < 128:  # rows, not channels, of which b0 has 128
            self.slow.append("GELU between two transposes")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["conv", "mlp"])
@torch.no_grad()
def test_what_is_traced_has_none_of_the_slow_forms(kind, monkeypatch):
    model = make(kind).to(memory_format=torch.contiguous_format)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with Operators() as operators:
        model(images("64x96", 2))
    assert not operators.slow


@traces
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv", "mlp", "uformer"])
def test_onnx_runtime_gives_the_same_logits(kind, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = make(kind)
    line = export(model, tmp_path / "model.onnx", META)
    assert "compared with the model" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "logits"]
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    texts = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(texts[name]) for name in FACTS} == FACTS
    assert_same_logits(
        model, lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    )


@pytest.mark.slow
def test_openvino_predicts_large_images_after_small_ones(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    openvino = pytest.importorskip("openvino")
    model = make("mlp")
    export(model, tmp_path / "model.onnx")
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(tmp_path / "model.onnx"), "CPU", exact)
    assert_same_logits(
        model, lambda image: torch.from_numpy(compiled(image.numpy())[0]), "32x32 128x128 35x1000"
    )


def test_the_form_alone_is_checked_without_onnxruntime(tmp_path, monkeypatch):
    def write(model, file, facts) -> None:
        file.write_bytes(b"graph")

    monkeypatch.setattr(exports, "write_onnx", write)
    monkeypatch.setattr(exports, "check_target", lambda model, file: None)
    assert "checked for form only" in export(make("mlp"), tmp_path / "model.onnx")


def test_a_folder_for_transformers_holds_the_same_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make("mlp")
    export(model, tmp_path / "folder", META)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "folder")
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    assert theirs.config.facts == FACTS
    processor = transformers.SegformerImageProcessor.from_pretrained(tmp_path / "folder")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    inputs = processor(Image.fromarray(pixels), return_tensors="pt")
    (labels,) = processor.post_process_semantic_segmentation(
        theirs.eval()(**inputs), target_sizes=[(48, 64)]
    )
    ours = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).argmax(1)[0]
    assert (labels == ours).float().mean() > 0.999


@pytest.mark.parametrize(
    ("kind", "name", "parts"),
    [
        ("unet", "model.engine", (".engine", ".pt2", ".onnx")),
        ("unet", "model.mlmodel", (".mlmodel",)),
        ("unet", ".onnx", (".onnx is not written here",)),
        ("unet", "missing/model.pt2", ("no folder", "missing")),
        ("unet", "missing/folder", ("no folder", "missing")),
        ("unet", "folder", ("decoder mlp", ".onnx")),
        ("conv", "folder", ("decoder mlp",)),
        ("uformer", "folder", ("decoder mlp",)),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_anything_is_written(kind, name, parts, tmp_path):
    with refused("--export", name, *parts):
        export(make(kind), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_old_norms_and_a_full_folder_are_refused(tmp_path):
    old = build_model({"model": "segformer", "num_classes": 2, "decoder": "mlp", "norm_eps": 1e-6})
    with refused("eps 1e-06", "1e-05"):
        check_target(old, tmp_path / "folder")
    with refused("not an empty folder"):
        check_target(make("mlp"), tmp_path.parent)


def test_packages_that_onnx_needs_are_asked_for(tmp_path, monkeypatch):
    found = exports.importlib.util.find_spec
    monkeypatch.setattr(
        exports.importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name)
    )
    with refused("model.onnx", "pip install onnx onnxscript"):
        export(make("unet"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    model = make("mlp")
    save = type(model).save_huggingface

    def damaged(self, *arguments) -> None:
        self.decoder.classify.bias.data += 1
        save(self, *arguments)
        self.decoder.classify.bias.data -= 1

    monkeypatch.setattr(type(model), "save_huggingface", damaged)
    with refused("folder", "differ", "not kept"):
        export(model, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def save_mlp(folder: Path, image_size: list[int] | None = None) -> None:
    """A checkpoint best.pt whose data are gone."""
    config = {"model": "segformer", "num_classes": 3, "decoder": "mlp", **NORMS}
    about = {"config": config, "model": make("mlp").state_dict(), **META}
    about["data"] = {"root": "/nowhere", "image_size": image_size, "splits": {}}
    save_checkpoint(folder / "best.pt", about)


def test_a_folder_predicts_images_as_the_checkpoint_does(tmp_path):
    save_mlp(tmp_path, [64, 96])
    assert run_script("evaluate", tmp_path / "best.pt", "--export", tmp_path / "folder") == 0
    pixels = np.random.default_rng(0).integers(0, 256, (80, 70, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    for model in ("best.pt", "folder"):
        flags = ("--images", tmp_path / "photos", "--out", tmp_path / f"of {model}")
        assert run_script("evaluate", tmp_path / model, *flags) == 0
    one, other = (tmp_path / f"of {model}" / "labels" / "a.png" for model in ("best.pt", "folder"))
    assert one.read_bytes() == other.read_bytes()


def test_a_link_stays_a_link_to_what_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    export(make("mlp"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "config.json").exists()


def test_what_a_terminated_export_wrote_is_removed(tmp_path, monkeypatch):
    save_mlp(tmp_path)

    def write(model, folder, facts) -> None:
        folder.mkdir()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(exports, "write_huggingface", write)
    assert run_script("evaluate", tmp_path / "best.pt", "--export", tmp_path / "folder") == 143
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_the_command_needs_no_data(tmp_path, capsys):
    save_mlp(tmp_path)
    target = ("--export", tmp_path / "folder")
    assert run_script("evaluate", tmp_path / "best.pt", *target, "--json", "scores.json") == 2
    assert run_script("evaluate", tmp_path / "best.pt", tmp_path / "best.pt", *target) == 2
    capsys.readouterr()
    assert run_script("evaluate", tmp_path / "best.pt", *target) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.search(r"folder: [\d.]+ MB, image N x 3 x H x W .*logits N x K", line)
    assert run_script("evaluate", tmp_path / "best.pt", "--export", tmp_path / "a.tflite") == 2


@traces
@pytest.mark.slow
def test_the_lines_of_the_document_give_the_mask_of_evaluate(tmp_path, monkeypatch):
    """They need onnxruntime, numpy and Pillow alone; with and without the training's image size."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    document = Path(__file__).parents[1] / "docs/export.md"
    (code,) = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imported == {"json", "numpy", "onnxruntime", "PIL"}
    monkeypatch.chdir(tmp_path)
    model = make("unet")
    Path("photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    photo = Image.fromarray(noise).resize((90, 70), Image.Resampling.BICUBIC)
    photo.save("photo.jpg")
    photo.save("photos/photo.jpg")
    config = {"model": "unet", "num_classes": 3}
    about = {"config": config, "model": model.state_dict(), **META}
    for size in (None, [48, 64]):
        about["data"] = {"root": "/nowhere", "image_size": size, "splits": {}}
        save_checkpoint("best.pt", about)
        assert run_script("evaluate", "best.pt", "--export", "model.onnx") == 0
        assert run_script("evaluate", "best.pt", "--images", "photos", "--out", "out") == 0
        exec(code, {})
        expected = np.array(Image.open("out/labels/photo.png"))
        found = np.array(Image.open("mask.png"))
        assert len(np.unique(expected)) > 1
        assert (found == expected).mean() > 0.999
        assert Image.open("mask.png").getpalette()[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


FULL_DISK = """
import pathlib, torch
from segmentation.evaluation import export
program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
export.trace = lambda model: program
try:
    export.write_pt2(None, pathlib.Path("/dev/full"), {})
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file that is always full")
def test_a_full_disk_does_not_end_the_process():
    done = subprocess.run([sys.executable, "-c", FULL_DISK], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "No space left on device\n")
