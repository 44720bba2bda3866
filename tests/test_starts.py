"""What a run starts with and what is scored: one rule for classes, whoever trained the model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image
from references import refused

from segmentation import SegFormer, load_checkpoint
from segmentation.checkpoint import count_seen, read_checkpoint, save_checkpoint, trained_on
from segmentation.models import build_model
from segmentation.pretrained.files import NO_LICENCE, open_weights
from segmentation.pretrained.initial import class_order, fit_classes, load_model

pytestmark = pytest.mark.usefixtures("small_models")

CLASSES = ["roof", "lawn", "tree"]
FLAGS = (
    "--device cpu --workers 0 --image-size 32 32 --batch-size 4 --augment 0 --epochs 1 --lr 1e-30"
).split()


def published(folder: Path, classes: list[str], **processor: bool) -> SegFormer:
    """A SegFormer with a classifier that decides, saved as Hugging Face does."""
    torch.manual_seed(3)
    model = SegFormer(len(classes), decoder="mlp").eval()
    torch.nn.init.normal_(model.decoder.classify.weight)
    torch.nn.init.normal_(model.decoder.classify.bias)
    model.save_huggingface(folder, classes)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 pairs of noise: class k is brightness k. Its classes have names."""
    root = tmp_path / "data"
    lines = ["index,name,r,g,b"]
    lines += [f"{k},{name},{80 * k},{k},0" for k, name in enumerate(CLASSES)]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.csv").write_text("\n".join(lines))
    generator = np.random.default_rng(0)
    for number in range(24):
        mask = generator.integers(0, 3, (8, 8)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
        image = 80 * mask[..., None] + generator.integers(0, 60, (40, 40, 3))
        Image.fromarray(mask).save(root / "masks" / f"{number:02}.png")
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{number:02}.png")
    return root


def train(data: Path, out: Path, *flags: object) -> dict:
    assert run_script("train", "--data", data, *FLAGS, "--out", out, *flags) == 0
    return read_checkpoint(out / "last.pt")


# --- the rule ---


@pytest.mark.parametrize(
    ("known", "classes", "order"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1]),
        (["a", "b"], ["a", "c"], None),
        (["a", "b"], ["a"], None),
        (["0", "1"], ["a", "b"], [0, 1]),
        (["a", "b"], ["0", "1"], [0, 1]),
        (["0", "1", "2"], ["0", "1"], None),
        (["a", "b", "c"], ["0", "1"], None),
    ],
)
def test_the_rows_that_classes_have(known, classes, order):
    assert class_order(known, classes) == order


def test_reduced_labels_fit_by_name_alone():
    assert class_order(["a", "b"], ["b", "a"], reduced=True) == [1, 0]
    assert class_order(["0", "1"], ["0", "1"], reduced=True) is None
    assert class_order(["a", "b"], ["0", "1"], reduced=True) is None


@pytest.mark.parametrize(
    "config",
    [
        {"model": "unet", "num_classes": 3},
        {"model": "segformer", "num_classes": 3, "decoder": "conv"},
        {"model": "segformer", "num_classes": 3, "decoder": "mlp"},
    ],
)
@torch.no_grad()
def test_classes_in_another_order_are_the_same_function_and_others_keep_the_rest(config):
    model = build_model(config).eval()
    meta = {"config": config, "classes": CLASSES, "reduced_labels": False}
    image = torch.rand(1, 3, 40, 56)
    turned, _, anew = fit_classes(model, meta, ["tree", "roof", "lawn"])
    assert not anew
    torch.testing.assert_close(turned(image), model(image)[:, [2, 0, 1]])
    other, config, anew = fit_classes(model, meta, ["sea", "sky"])
    assert (anew, config["num_classes"]) == ("classifier", 2)
    kept, found = model.state_dict(), other.state_dict()
    for name in found:
        assert ("classify" in name) or torch.equal(found[name], kept[name])


# --- train.py --init, --encoder-weights ---


def test_init_from_a_published_model_keeps_what_fits_and_says_what_does_not(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    given = published(tmp_path / "hub", ["tree", "roof", "lawn"])
    run = train(data, tmp_path / "same", "--init", tmp_path / "hub", "--dropout", 0.2)
    assert "anew" not in capsys.readouterr().out
    assert run["config"] | {"drop_path": 0} == {
        "model": "segformer",
        "num_classes": 3,
        "variant": "b0",
        "decoder": "mlp",
        "norm_eps": 1e-5,
        "drop_path": 0,
        "dropout": 0.2,
    }
    (record,) = run["encoder_weights"]["members"]
    assert record["path"].endswith("model.safetensors") and len(record["sha256"]) == 64
    rows = given.state_dict()["decoder.classify.weight"][[1, 2, 0]]
    assert torch.allclose(run["model"]["decoder.classify.weight"], rows)

    given = published(tmp_path / "other", ["sky", "sea"])
    run = train(data, tmp_path / "others", "--init", tmp_path / "other")
    said = capsys.readouterr().out
    assert "its classifier starts anew for roof, lawn, tree; the rest is kept" in said
    fuse = given.state_dict()["decoder.fuse.weight"]
    assert torch.allclose(run["model"]["decoder.fuse.weight"], fuse)

    run = train(data, tmp_path / "conv", "--init", tmp_path / "hub", "--decoder", "conv")
    assert "its decoder starts anew for roof, lawn, tree" in capsys.readouterr().out
    assert run["config"]["decoder"] == "conv"

    assert run_script("train", "--model", "unet", "--init", tmp_path / "hub", "--data", data) == 2
    assert "hub is a segformer: say --model segformer" in capsys.readouterr().err


def test_init_from_a_checkpoint_follows_the_same_rule(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    first = train(data, tmp_path / "first", "--encoder-weights", "none", "--model", "unet")
    last = tmp_path / "first" / "last.pt"
    (data / "classes.csv").write_text("0,tree,0,0,0\n1,roof,80,1,0\n2,lawn,160,2,0\n")
    second = train(data, tmp_path / "second", "--model", "unet", "--init", last, "--seed", 0)
    rows = first["model"]["classify.weight"][[2, 0, 1]]
    assert torch.allclose(second["model"]["classify.weight"], rows)
    (data / "classes.csv").unlink()
    train(data, tmp_path / "third", "--model", "unet", "--init", last)
    assert "anew" not in capsys.readouterr().out
    (data / "classes.csv").write_text("0,sea,0,0,0\n1,roof,80,1,0\n2,lawn,160,2,0\n")
    train(data, tmp_path / "fourth", "--model", "unet", "--init", last)
    assert "its classifier starts anew for sea, roof, lawn" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--init", "--encoder-weights"])
def test_scored_images_that_the_starting_weights_have_seen_are_told(
    flag: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    train(data, tmp_path / "first", "--encoder-weights", "none", "--seed", 0)
    first = tmp_path / "first" / "last.pt"
    train(data, tmp_path / "same", flag, first, "--seed", 0)
    assert "named like" not in capsys.readouterr().out

    # Through two starts, and where the images lie elsewhere and are drawn to other splits.
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    second = train(moved, tmp_path / "second", flag, tmp_path / "same" / "last.pt", "--seed", 1)
    earlier = {Path(name).stem for name in torch.load(first)["data"]["splits"]["train"]}
    scored = [*second["data"]["splits"]["val"], *second["data"]["splits"]["test"]]
    seen = [name for name in scored if Path(name).stem in earlier]
    assert seen
    told = f"warning: {len(seen)} of {len(scored)} val and test images are named like images"
    assert told in capsys.readouterr().out

    out = tmp_path / "report"
    assert run_script("evaluate", tmp_path / "second" / "last.pt", "--out", out) == 0
    tested = second["data"]["splits"]["test"]
    count = len([name for name in tested if name in seen])
    assert f"{count} of {len(tested)} images, by name" in (out / "report.html").read_text()


def score(tmp_path: Path, *arguments: object) -> str:
    """The row of the report on what was seen; its first number is of the first column."""
    assert run_script("evaluate", *arguments, "--out", tmp_path / "report") == 0
    html = (tmp_path / "report" / "report.html").read_text()
    return html[html.index("scored here, seen before") :].split("</tr>")[0]


def test_a_checkpoint_that_has_trained_on_what_is_scored_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """val of a --fit-all run becomes test, its names in the Unicode form of macOS."""
    for split, numbers in (("train", range(18)), ("val", range(18, 24))):
        for folder in ("images", "masks"):
            (tmp_path / "set" / split / folder).mkdir(parents=True)
            for number in numbers:
                file = tmp_path / "set" / split / folder / f"\xe9{number:02}.png"
                (data / folder / f"{number:02}.png").rename(file)
    flags = ("--encoder-weights", "none", "--recipe", "fast", "--fit-all")
    train(tmp_path / "set", tmp_path / "run", *flags)
    (tmp_path / "set" / "val").rename(tmp_path / "set" / "test")
    for file in [*(tmp_path / "set" / "test").rglob("*.png")]:
        file.rename(file.with_name(file.name.replace("\xe9", "e\u0301")))
    best = tmp_path / "run" / "best.pt"
    seen = score(tmp_path, best, "--data", tmp_path / "set", "--split", "all")
    assert "24 of 24 images, by name" in seen
    told = f"warning: 24 of these 24 images are named like images that {best} was trained on"
    assert told in capsys.readouterr().out
    assert run_script("ensemble", best, best.with_name("last.pt"), "--data", tmp_path / "set") == 0
    assert told.replace("24", "6") in capsys.readouterr().out


def test_images_numbered_anew_in_each_split_are_told_apart():
    """The built-in scenes are named so."""
    splits = {"train": ["train/0000", "train/0001"], "val": ["val/0000"], "test": ["test/0000"]}
    seen = trained_on({"data": {"splits": splits}})
    assert [count_seen(names, seen) for names in splits.values()] == [2, 0, 0]


def test_what_members_of_members_have_seen_is_known(data: Path, tmp_path: Path):
    """A UFormer of two runs that started from checkpoints, as ensemble.py stores it."""
    start = train(data, tmp_path / "start", "--encoder-weights", "none", "--seed", 1)
    init = ("--init", tmp_path / "start" / "last.pt")
    files = []
    for name in "ab":
        train(data, tmp_path / name, *init, "--seed", 0)
        files.append(tmp_path / name / "last.pt")
    average = tmp_path / "average.pt"
    assert run_script("ensemble", *files, "--weights", 1, 1, "--out", average) == 0
    record = open_weights(average).record
    own = load_checkpoint(average)[1]["data"]["splits"]
    both = {Path(name).stem for name in (*start["data"]["splits"]["train"], *own["train"])}
    assert set(record["seen"]) == both > {Path(name).stem for name in own["train"]}
    assert record["licence"] == "; ".join(2 * [NO_LICENCE])
    seen = f"{len([n for n in own['test'] if Path(n).stem in both])} of {len(own['test'])} images"
    assert score(tmp_path, average).count(seen) == 3  # the average and its members


def test_a_uformer_takes_two_files(data: Path, tmp_path: Path):
    given = published(tmp_path / "hub", CLASSES)
    unet = build_model({"model": "unet", "num_classes": 2})
    torch.save(unet.encoder.state_dict(), tmp_path / "resnet18.pth")
    files = (tmp_path / "resnet18.pth", tmp_path / "hub")
    run = train(data, tmp_path / "run", "--model", "uformer", "--encoder-weights", *files)
    for name, tensor in given.encoder.named_parameters():
        assert torch.allclose(run["model"][f"members.1.encoder.{name}"], tensor)
    for name, tensor in unet.encoder.named_parameters():
        assert torch.allclose(run["model"][f"members.0.encoder.{name}"], tensor)
    assert [record["source"] for record in run["encoder_weights"]["members"]] == ["file", "file"]
    assert run["args"]["encoder_weights"] == [*map(str, files)]
    again = ("--model", "uformer", "--encoder-weights", *files, "--resume")
    train(data, tmp_path / "run", *again)


# --- norm_eps ---


def test_new_segformers_have_the_eps_of_transformers_and_old_checkpoints_their_own(tmp_path):
    old = {"model": "segformer", "num_classes": 2}
    pair = {"model": "uformer", "members": [{"model": "unet", "num_classes": 2}, old]}
    pair["weights"] = None
    for config, norm in ((old, "encoder.stages.3.norm"), (pair, "members.1.encoder.stages.3.norm")):
        about = {"config": config, "classes": ["a", "b"]}
        save_checkpoint(tmp_path / "a.pt", {"model": build_model(config).state_dict(), **about})
        model, meta = load_checkpoint(tmp_path / "a.pt")
        assert model.get_submodule(norm).eps == 1e-6
        assert meta["config"].get("members", [meta["config"]])[-1]["norm_eps"] == 1e-6
        assert build_model(config).get_submodule(norm).eps == 1e-5


# --- evaluate.py with a published model ---


def test_a_published_model_is_scored_by_the_names_of_its_classes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    model = published(tmp_path / "hub", ["tree", "roof", "lawn"], do_reduce_labels=True)
    assert load_model(tmp_path / "hub")[1]["reduced_labels"]
    assert SegFormer.from_huggingface(tmp_path / "hub").reduced_labels
    own, order = model.state_dict(), [1, 2, 0]
    for key in ("decoder.classify.weight", "decoder.classify.bias"):
        own[key] = own[key][order]
    run = train(data, tmp_path / "run", "--encoder-weights", "none", "--decoder", "mlp")
    save_checkpoint(tmp_path / "own.pt", run | {"model": own})
    about = run["data"] | {"image_size": None}
    save_checkpoint(tmp_path / "own.pt", run | {"model": own, "data": about})
    for name, path in (("own", tmp_path / "own.pt"), ("hub", tmp_path / "hub")):
        files = ("--json", tmp_path / f"{name}.json", "--out", tmp_path / name)
        assert run_script("evaluate", path, "--data", data, "--split", "test", *files) == 0
    own, hub = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("own", "hub"))
    assert own == hub
    report = (tmp_path / "hub" / "report.html").read_text()
    assert "NVIDIA&#x27;s own MiT weights" in report or "NVIDIA's own MiT weights" in report
    both = [tmp_path / "own.pt", tmp_path / "hub", "--data", data]
    assert run_script("evaluate", *both, "--split", "test") == 0
    assert run_script("evaluate", *both) == 2  # the hub's model was trained on none of them

    capsys.readouterr()
    (data / "classes.csv").unlink()
    assert run_script("evaluate", tmp_path / "hub", "--data", data) == 2
    said = capsys.readouterr().err
    assert "hub knows the classes tree, roof, lawn, class k being stored value k + 1" in said
    assert said.count("\n") == 1
    (tmp_path / "hub" / "preprocessor_config.json").write_text('{"reduce_labels": true}')
    assert run_script("evaluate", tmp_path / "hub", "--data", data) == 2
    (tmp_path / "hub" / "preprocessor_config.json").unlink()
    assert run_script("evaluate", tmp_path / "hub", "--data", data) == 0


def test_a_checkpoint_that_lost_its_data_is_scored_like_a_published_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """It has the keys that load_checkpoint asks for, and no more."""
    config = {"model": "unet", "num_classes": len(CLASSES)}
    bare = {"model": build_model(config).state_dict(), "config": config, "classes": CLASSES}
    save_checkpoint(tmp_path / "bare.pt", bare)
    assert run_script("evaluate", tmp_path / "bare.pt", "--data", data) == 0
    images = ("--images", data / "images", "--out", tmp_path / "out")
    assert run_script("evaluate", tmp_path / "bare.pt", *images) == 0
    capsys.readouterr()
    for script, files in (("evaluate", 1), ("ensemble", 2)):
        assert run_script(script, *[tmp_path / "bare.pt"] * files) == 2
        assert "bare.pt knows no data" in capsys.readouterr().err


def test_a_published_model_predicts_images_and_asks_for_what_it_needs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    model = published(tmp_path / "hub", ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"])
    images = ("--images", data / "images", "--out", tmp_path / "out")
    assert run_script("evaluate", tmp_path / "hub", *images) == 0
    picture = Image.open(data / "images" / "07.png")
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = model(image).argmax(1)[0].numpy()
    assert (np.array(Image.open(tmp_path / "out" / "labels" / "07.png")) == expected).mean() > 0.999
    capsys.readouterr()
    assert run_script("evaluate", tmp_path / "hub") == 2
    said = capsys.readouterr().err
    assert "hub knows no data: say --data DIR" in said
    assert run_script("evaluate", tmp_path / "hub", "--data", data) == 2
    said = capsys.readouterr().err
    assert "hub knows the classes 0, 1, 2, 3;" in said and "has roof, lawn, tree" in said
    with refused("another.pt cannot be read"):
        load_model(tmp_path / "another.pt")
