"""Every form in which weights are found, and the true reason of each file that does not come in."""

import hashlib
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from references import nvlabs, reference_config, refused, shuffled
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from segmentation.checkpoint import save_checkpoint
from segmentation.errors import BadInput
from segmentation.models.segformer import SegFormer
from segmentation.models.uformer import UFormer
from segmentation.models.unet import ResNet18UNet
from segmentation.pretrained import load_encoder_weights
from segmentation.pretrained.files import (
    FILE_LICENCE,
    NO_LICENCE,
    open_weights,
    read_safetensors,
    write_safetensors,
)

State = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("small_models")


@pytest.fixture(scope="module")
def reference(small_models) -> nn.Module:
    return shuffled(transformers.SegformerForSemanticSegmentation(reference_config("b0")))


@pytest.fixture(scope="module")
def published(reference, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    reference.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def state(published) -> State:
    """Under the names of the hub's files."""
    return load_file(published / "model.safetensors")


@pytest.fixture(scope="module")
def encoder(published) -> State:
    """What every form of the file must give."""
    model = SegFormer(2)
    load_encoder_weights(model, published)
    return model.encoder.state_dict()


@pytest.fixture(scope="module")
def whole(published) -> State:
    """The same, decoder and all."""
    return SegFormer.from_huggingface(published).state_dict()


def nvlabs_whole(state: State) -> State:
    """A whole SegFormer as NVlabs' framework names it, with the classifier it never calls."""
    return {"decode_head.conv_seg.weight": torch.zeros(5, 128, 1, 1), **nvlabs(state)}


# --- forms ---


def shards(folder: Path, state: State, file: str, save: Callable) -> Path:
    names = sorted(state)
    stem, ending = file.split(".")
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{stem}-{number:05}-of-00002.{ending}"
        save({name: state[name].contiguous() for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = folder / f"{file}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def hub_cache(folder: Path, published: Path) -> Path:
    """As huggingface_hub lays it out: blobs, and links to them in a snapshot."""
    root = folder / "models--someone--segformer"
    snapshot = root / "snapshots" / "0123abc"
    for path in (root / "blobs", snapshot, root / "refs"):
        path.mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abc")
    for number, file in enumerate(sorted(published.iterdir())):
        shutil.copy(file, root / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    (root / "snapshots" / "older").mkdir()
    return root


def trainers_folder(folder: Path, published: Path) -> Path:
    step = folder / "checkpoint-500"
    shutil.copytree(published, step)
    torch.save({"state": {}}, step / "optimizer.pt")
    (step / "trainer_state.json").write_text("{}")
    return step


def saved(folder: Path, content: object, name: str = "weights.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def legacy(folder: Path, state: State) -> Path:
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    return folder / "old.bin"


def under_another_name(folder: Path, published: Path) -> Path:
    shutil.copy(published / "model.safetensors", folder / "blob")
    return folder / "blob"


def before_all(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS: dict[str, Callable[[Path, State, Path, nn.Module], Path]] = {
    "a safetensors file": lambda at, state, hub, model: hub / "model.safetensors",
    "safetensors by content": lambda at, state, hub, model: under_another_name(at, hub),
    ".bin": lambda at, state, hub, model: saved(at, state, "pytorch_model.bin"),
    "a folder with .bin": lambda at, state, hub, model: (
        saved(at, state, "pytorch_model.bin").parent
    ),
    ".pt of torch before 1.6": lambda at, state, hub, model: legacy(at, state),
    "modules of transformers 5": lambda at, state, hub, model: saved(at, model.state_dict()),
    "nvlabs, whole": lambda at, state, hub, model: saved(
        at, {"meta": {"epoch": 3}, "state_dict": nvlabs_whole(state)}
    ),
    "shards of .bin": lambda at, state, hub, model: shards(
        at, state, "pytorch_model.bin", torch.save
    ),
    "shards of safetensors": lambda at, state, hub, model: shards(
        at, state, "model.safetensors", save_file
    ),
    "an index of shards": lambda at, state, hub, model: (
        shards(at, state, "model.safetensors", save_file) / "model.safetensors.index.json"
    ),
    "the hub's cache": lambda at, state, hub, model: hub_cache(at, hub),
    "a snapshot": lambda at, state, hub, model: hub_cache(at, hub) / "snapshots" / "0123abc",
    "a trainer's step": lambda at, state, hub, model: trainers_folder(at, hub),
    "state_dict": lambda at, state, hub, model: saved(at, {"state_dict": state, "epoch": 3}),
    "model": lambda at, state, hub, model: saved(at, {"model": state, "args": {"lr": 0.1}}),
    "net": lambda at, state, hub, model: saved(at, {"net": state}),
    "module.": lambda at, state, hub, model: saved(at, before_all(state, "module.")),
    "_orig_mod.": lambda at, state, hub, model: saved(at, before_all(state, "_orig_mod.")),
    "model.": lambda at, state, hub, model: saved(at, before_all(state, "model.")),
    "wrapped thrice": lambda at, state, hub, model: saved(
        at, {"state_dict": before_all(state, "model._orig_mod.module.")}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_model(
    form, state, published, reference, encoder, whole, tmp_path
):
    source = FORMS[form](tmp_path, state, published, reference)
    model = SegFormer(2)
    load_encoder_weights(model, source)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, encoder[name]), name
    for name, tensor in SegFormer.from_huggingface(source).state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype, state, encoder, tmp_path):
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, tmp_path / "model.safetensors")
    model = SegFormer(2)
    load_encoder_weights(model, tmp_path)
    for name, tensor in model.encoder.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, encoder[name].to(dtype).float())


def test_variances_that_float16_cannot_hold_are_refused(tmp_path):
    """They would be infinite: training looks at the batch's own, and predictions would be wrong."""
    state = ResNet18UNet(2).encoder.state_dict()
    state["bn1.running_var"][3] = 70_000
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    file = saved(tmp_path, half)
    with pytest.raises(BadInput, match=r"not finite are bn1\.running_var$"):
        load_encoder_weights(ResNet18UNet(2), file)


def test_where_both_lie_safetensors_are_taken(state, published, tmp_path):
    torch.save({name: tensor * 0 for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    shutil.copy(published / "model.safetensors", tmp_path)
    weights = open_weights(tmp_path)
    assert weights.path == tmp_path / "model.safetensors"


def test_the_encoder_of_a_checkpoint_or_of_the_member_that_fits(encoder, tmp_path):
    unet, segformer = ResNet18UNet(3), SegFormer(4, decoder="mlp")
    configs = [{"model": "unet", "num_classes": 3}]
    configs.append({"model": "segformer", "num_classes": 4, "variant": "b0", "decoder": "mlp"})
    pair = {"model": "uformer", "members": configs, "weights": None}
    record = {"source": "imagenet", "licence": "of NVIDIA"}
    files = {
        "unet": (unet, configs[0], None),
        "segformer": (segformer, configs[1], record),
        "pair": (UFormer(unet, segformer), pair, {"members": [None, record]}),
    }
    for name, (model, config, weights) in files.items():
        about = {
            "config": config,
            "classes": [],
            "data": {"splits": {"train": []}},
            "encoder_weights": weights,
        }
        save_checkpoint(tmp_path / f"{name}.pt", {"model": model.state_dict(), **about})
    for model, given, source in (
        (ResNet18UNet(2), unet, "unet"),
        (ResNet18UNet(2), unet, "pair"),
        (SegFormer(2), segformer, "segformer"),
        (SegFormer(2), segformer, "pair"),
    ):
        record = load_encoder_weights(model, tmp_path / f"{source}.pt")
        assert record["licence"] == (NO_LICENCE if source == "unet" else "of NVIDIA")
        for name, tensor in model.encoder.state_dict().items():
            assert torch.equal(tensor, given.encoder.state_dict()[name])
    with refused("pair.pt holds uformer, and no MiT-b1 that fits: use another"):
        load_encoder_weights(SegFormer(2, "b1"), tmp_path / "pair.pt")
    with refused("unet.pt holds unet, and no MiT-b0 that fits"):
        load_encoder_weights(SegFormer(2), tmp_path / "unet.pt")
    with refused("segformer.pt is a checkpoint of this project", "load_checkpoint"):
        SegFormer.from_huggingface(tmp_path / "segformer.pt")


def test_the_record_has_the_hash_and_the_licence_that_a_card_states(state, published, tmp_path):
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    record = load_encoder_weights(SegFormer(2), tmp_path)
    file = tmp_path / "model.safetensors"
    assert record == {
        "source": "file",
        "path": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": FILE_LICENCE,
    }
    card = tmp_path / "README.md"
    for text, licence in (
        ("---\ntags:\n- vision\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("---\nlicense: 'other'\n---\n", "other"),
        ("---\ntags: x\n---\nlicense: mit\n", FILE_LICENCE),
        ("# Model\nlicense: mit\n", FILE_LICENCE),
    ):
        card.write_text(text)
        assert load_encoder_weights(SegFormer(2), tmp_path)["licence"] == licence
    (tmp_path / "parts").mkdir()
    source = shards(tmp_path / "parts", state, "pytorch_model.bin", torch.save)
    assert len(load_encoder_weights(SegFormer(2), source)["sha256"]) == 2


# --- safetensors, written and read by hand ---


def test_safetensors_are_those_of_the_package(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "scalar": torch.tensor(7),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(5, generator=generator).half(),
        "brain": torch.randn(2, 3, generator=generator).bfloat16(),
        "matrix": torch.randn(4, 3, generator=generator).T,
        "wide": torch.randn(2, generator=generator).double(),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
        "å": torch.ones(1),
    }
    write_safetensors(tmp_path / "ours", tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs")
    for found in (
        load_file(tmp_path / "ours"),
        read_safetensors(tmp_path / "ours"),
        read_safetensors(tmp_path / "theirs"),
    ):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert torch.equal(found[name], tensor)


def by_hand(path: Path, header: object, body: bytes, length: int | None = None) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)


def entry(begin: int = 0, end: int = 8, dtype: str = "F32", shape: tuple = (2,)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "body", "reason"),
    [
        ({"a": entry()}, 7, "is cut short"),
        ({"a": entry()}, 9, "cannot be read (bytes behind the last tensor)"),
        ({"a": entry(0, 4)}, 4, "cannot be read (the offsets of a)"),
        ({"a": entry(4, 12)}, 12, "cannot be read (the offsets of a)"),
        ({"a": entry(), "b": entry(4, 12)}, 12, "cannot be read (the offsets of b)"),
        ({"a": entry(shape=(-1, -2))}, 8, "cannot be read"),
        (
            {"a": entry(dtype="F8_E4M3", shape=(8,))},
            8,
            "cannot be read ('F8_E4M3'): fetch it again, or save it in float32",
        ),
        ({"a": {"dtype": "F32"}}, 8, "cannot be read"),
        ({"a": 3}, 8, "cannot be read"),
    ],
)
def test_a_bad_header_is_refused(header, body, reason, tmp_path):
    by_hand(tmp_path / "bad.safetensors", header, bytes(body))
    with refused("bad.safetensors " + reason):
        open_weights(tmp_path / "bad.safetensors")


def test_a_header_that_ends_beyond_the_file_or_is_no_json_is_refused(tmp_path):
    path = tmp_path / "bad.safetensors"
    by_hand(path, {"a": entry()}, bytes(8), length=10**15)
    with refused("is cut short"):
        open_weights(path)
    by_hand(path, {"a": entry()}, bytes(8), length=20)
    with refused("cannot be read"):
        open_weights(path)


# --- what does not come in, and why ---


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def pointer(at: Path, state: State) -> None:
    lines = ("version https://git-lfs.github.com/spec/v1", "oid sha256:4af8348c", "size 14351557")
    (at / "w").write_text("\n".join(lines))


def truncated(at: Path, state: State) -> None:
    torch.save(state, at / "w")
    cut(at / "w")


def truncated_legacy(at: Path, state: State) -> None:
    torch.save(state, at / "w", _use_new_zipfile_serialization=False)
    cut(at / "w", 0.99)


def truncated_safetensors(at: Path, state: State) -> None:
    save_file(state, at / "w")
    cut(at / "w", 0.99)


def another_zip(at: Path, state: State) -> None:
    with zipfile.ZipFile(at / "w", "w") as archive:
        archive.writestr("a.npy", b"0" * 1000)


REFUSALS: dict[str, tuple[Callable[[Path, State], object], str]] = {
    "a git-lfs pointer": (pointer, "is a git-lfs pointer to the weights: run git lfs pull"),
    "a web page": (
        lambda at, state: (at / "w").write_text("\n<!DOCTYPE html>\n<html>...</html>"),
        "is a web page: download the file itself",
    ),
    "a pickled model": (
        lambda at, state: torch.save(Net(), at / "w"),
        f"it holds a {Net.__module__}.Net; save model.state_dict() instead",
    ),
    "a pickled model of torch before 1.6": (
        lambda at, state: torch.save(Net(), at / "w", _use_new_zipfile_serialization=False),
        f"it holds a {Net.__module__}.Net; save model.state_dict() instead",
    ),
    "an object among weights": (
        lambda at, state: torch.save({"state_dict": state, "best": np.float64(1)}, at / "w"),
        "scalar; save model.state_dict() instead",
    ),
    "cut short": (truncated, "is cut short: copy or fetch it again"),
    "cut short, torch before 1.6": (truncated_legacy, "is cut short: copy or fetch it again"),
    "cut short, safetensors": (truncated_safetensors, "is cut short: copy or fetch it again"),
    "empty": (lambda at, state: (at / "w").touch(), "is empty"),
    "another zip": (another_zip, "is damaged or not a checkpoint"),
    "a plain pickle": (
        lambda at, state: (at / "w").write_bytes(pickle.dumps([1])),
        "not a checkpoint",
    ),
    "a picture": (
        lambda at, state: (at / "w").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)),
        "not a checkpoint",
    ),
    "a training's state": (
        lambda at, state: torch.save({"weights": state, "epoch": 3}, at / "w"),
        "is not a plain table of named tensors: it holds weights, epoch; save",
    ),
    "a list": (lambda at, state: torch.save([1], at / "w"), "it holds a list"),
    "another model altogether": (
        lambda at, state: torch.save(resnet18(weights=None).state_dict(), at / "w"),
        "is no MiT that Hugging Face or NVlabs saved: it holds conv1.weight",
    ),
    "another variant": (
        lambda at, state: SegFormer(2, "b1", decoder="mlp").save_huggingface(at / "w"),
        "holds MiT-b1, the model is b0: use --variant b1 or another file",
    ),
    "a folder without weights": (
        lambda at, state: (at / "w").mkdir(),
        "holds neither model.safetensors nor pytorch_model.bin: name another",
    ),
    "nothing": (lambda at, state: None, "cannot be read (No such file or directory)"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSALS)
def test_the_true_reason_is_one_sentence(case, state, tmp_path):
    make, reason = REFUSALS[case]
    make(tmp_path, state)
    with refused(str(tmp_path / "w"), reason) as caught:
        load_encoder_weights(SegFormer(2), tmp_path / "w")
    if not case.startswith("cut"):
        assert "cut short" not in str(caught.value)


def test_the_unet_says_what_it_takes(published):
    with refused("is no ResNet18 that torchvision saved: it holds"):
        load_encoder_weights(ResNet18UNet(2), published)


def test_a_missing_shard_is_named(state, tmp_path):
    folder = shards(tmp_path, state, "pytorch_model.bin", torch.save)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with refused("index.json names shards", "fetch pytorch_model-00002-of-00002.bin too"):
        open_weights(folder)
    index = folder / "pytorch_model.bin.index.json"
    for text, reason in (
        ("<html>", "not JSON that can be read"),
        ('{"weight_map": {"a": "../b.bin"}}', "has no weight_map of files beside it"),
        ("{}", "has no weight_map of files beside it"),
    ):
        index.write_text(text)
        with refused(str(index), reason):
            open_weights(folder)


def test_folders_below_that_hold_weights_are_named(published, tmp_path):
    for name in ("checkpoint-500", "checkpoint-1000"):
        shutil.copytree(published, tmp_path / name)
    with refused(str(tmp_path), "name one of its folders checkpoint-1000, checkpoint-500"):
        open_weights(tmp_path)


def test_a_link_to_nothing_cannot_be_read(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("../../blobs/gone")
    with refused("model.safetensors cannot be read (No such file or directory)"):
        open_weights(tmp_path)
