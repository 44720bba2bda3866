"""report.html, its pictures, tables and curves: their content, and how a browser shows them."""

import csv
import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image

from segmentation.checkpoint import read_checkpoint, save_checkpoint
from segmentation.report.curves import COLOURS, curve_panels, curves_svg
from segmentation.report.tables import Entry, choose_examples, index_of_best

pytestmark = pytest.mark.usefixtures("small_models")

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
QUIET = "--disable-background-networking --disable-component-update --disable-sync --disable-quic"
BROWSER = f"--headless --no-sandbox --no-first-run --disable-gpu {QUIET}".split()
BROWSER += "--enable-logging=stderr --virtual-time-budget=4000 --window-size=1200,900".split()
BROWSER += ["--dump-dom"]
ROOT = Path(__file__).parent.parent
HOSTILE = "<script>alert('1')</script>&\""  # the name of a class


@pytest.fixture(scope="module")
def runs(trained: Callable[[str], Path]) -> list[Path]:
    """Two checkpoints of the same data."""
    return [trained(model) / "last.pt" for model in ("unet", "segformer")]


@pytest.fixture(scope="module")
def single(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single")
    flags = ("--out", out, "--top", 1, "--json", out / "scores.json", "--flips")
    assert run_script("evaluate", runs[1], *flags) == 0
    return out


@pytest.fixture(scope="module")
def comparison(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison")
    flags = ("--out", out, "--top", 2, "--json", out / "scores.json")
    assert run_script("evaluate", *runs, *flags) == 0
    return out


class Elements(HTMLParser):
    """All start tags with their attributes, and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict]:
        return [
            a for t, a in self.found if t == tag and all(a.get(k) == v for k, v in wanted.items())
        ]


def table_rows(page: Path, label: str) -> list[list[str]]:
    """The texts of a table's cells, found by what a screen reader calls the table."""
    table = page.read_text().split(f'aria-label="{label}"')[1].split("</table>")[0]
    rows = []
    for row in re.findall(r"<tr>(.*?)</tr>", table, re.S):
        cells = re.findall(r"<t[hd].*?</t[hd]>", row)
        rows.append([html.unescape(re.sub(r"<.*?>", "", cell)) for cell in cells])
    return rows


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_the_report_is_one_file_that_loads_nothing(single: Path, comparison: Path):
    for folder in (single, comparison):
        page = Elements((folder / "report.html").read_text())
        for tag, attributes in page.found:
            assert tag not in ("link", "iframe", "object", "embed", "base")
            assert tag != "script" or not attributes
            for key in ("src", "href", "srcset", "xlink:href", "action"):
                value = attributes.get(key, "#")
                assert value.startswith(("#", "data:image/")), (tag, value[:80])
        assert not re.search(r"url\(|@import|https?:", (folder / "report.html").read_text())
        (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
        directives = [rule.split() for rule in policy["content"].split(";")]
        assert ["default-src", "'none'"] in directives and ["img-src", "data:"] in directives
        others = {source for _, *sources in directives for source in sources}
        assert others == {"'none'", "data:", "'unsafe-inline'"}


def test_a_wheel_holds_the_template():
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "segmentation" / "report"
    packed = [
        path
        for pattern in settings["package-data"]["segmentation.report"]
        for path in folder.glob(pattern)
    ]
    assert packed == [folder / "template.html"]


def test_the_report_names_every_convention_and_how_the_model_came_about(
    single: Path, runs: list[Path]
):
    scores = json.loads((single / "scores.json").read_text())
    text = Elements((single / "report.html").read_text()).text
    for key in ("miou", "mpa", "pixel_accuracy", "fwiou", "image_miou", "image_mpa", "loss"):
        assert f"{scores[key]:.4f}" in text
    pixels = sum(map(sum, scores["confusion"]))
    for words in (
        "one confusion matrix of all pixels, mean over 3 of 3 classes",
        "mean over images for each class, then over classes",
        "Tversky 0.3 / 0.7, one loss over all pixels",
        f"{pixels:,} pixels of 3 images are scored, at the masks' own size",
        "generic: 3 test images",
        read_checkpoint(runs[1])["command"],
        "averaged over flips",
        "3 epochs, batch 8, learning rate 0.001",
        "none: trained from random numbers",
        f"torch {torch.__version__}",
    ):
        assert words in text, words
    assert re.search(r"seed\s*3", text)


def test_the_report_shows_best_and_worst_as_pictures_with_words(single: Path):
    scores = json.loads((single / "scores.json").read_text())
    page = Elements((single / "report.html").read_text())
    assert len(page.all("article")) == 2
    buttons = [a["data-kind"] for a in page.all("button", **{"class": "zoom"})]
    assert buttons == ["image", "truth", "prediction", "difference"] * 2
    pictures = [a for a in page.all("img") if "src" in a]
    assert len(pictures) == 8
    ordered = sorted(scores["images"], key=lambda image: -image["miou"])
    shown = [a["data-title"] for a in page.all("button", **{"data-kind": "prediction"})]
    for index, (image, title) in enumerate(zip((ordered[0], ordered[-1]), shown, strict=True)):
        texts = [picture["alt"] for picture in pictures[4 * index : 4 * index + 4]]
        assert len(set(texts)) == 4 and all(image["name"] in text for text in texts)
        assert title == f"{image['name']}: mIoU {image['miou']:.4f}, mPA {image['mpa']:.4f}"


def test_pictures_and_tables_lie_beside_the_report(single: Path, tiny_folder: Path):
    scores = json.loads((single / "scores.json").read_text())
    best = max(scores["images"], key=lambda image: image["miou"])["name"]
    stem = f"images_{Path(best).stem}"
    files = {path.name for path in (single / "report_pictures").iterdir()}
    kinds = ("image", "truth", "prediction", "difference")
    assert {f"{stem}_{kind}.png" for kind in kinds} <= files and len(files) == 8
    truth = Image.open(single / "report_pictures" / f"{stem}_truth.png")
    mask = np.array(Image.open(tiny_folder / "masks" / Path(best).name))
    assert truth.mode == "P" and (np.array(truth) == mask).all()
    image = Image.open(single / "report_pictures" / f"{stem}_image.png")
    assert (np.array(image) == np.array(Image.open(tiny_folder / best))).all()
    by_class = rows_of(single / "scores_by_class.csv")
    assert [float(row[2]) for row in by_class[1:]] == list(scores["iou"].values())
    assert [float(row[3]) for row in by_class[1:]] == list(scores["accuracy"].values())
    assert sum(float(row[1]) for row in by_class[1:]) == pytest.approx(1)
    assert [float(row[1]) for row in rows_of(single / "scores_by_image.csv")[1:]] == [
        image["miou"] for image in scores["images"]
    ]
    assert float(rows_of(single / "scores.csv")[1][2]) == scores["miou"]


def test_a_comparison_has_a_column_a_model_and_says_where_each_wins(
    comparison: Path, runs: list[Path]
):
    scores = list(json.loads((comparison / "scores.json").read_text()).values())
    by_class = rows_of(comparison / "scores_by_class.csv")
    assert by_class[0] == [
        "class",
        "share",
        "IoU unet",
        "IoU segformer",
        "accuracy unet",
        "accuracy segformer",
    ]
    for row in by_class[1:]:
        assert [float(row[2]), float(row[3])] == [each["iou"][row[0]] for each in scores]
    text = Elements((comparison / "report.html").read_text()).text
    led = 0  # images shown because a model leads there
    for index, name in enumerate(("unet", "segformer")):
        other = scores[1 - index]
        classes = sum(value > other["iou"][key] for key, value in scores[index]["iou"].items())
        pairs = zip(scores[index]["images"], other["images"], strict=True)
        images = sum(mine["miou"] > its["miou"] for mine, its in pairs)
        wins = f"IoU in {classes} of 3 classes and the highest mIoU in {images} of 3 images"
        assert f"{name} has the highest {wins}" in text
        assert f"Where {name} leads most" in text
        led += min(images, 2)
    page = Elements((comparison / "report.html").read_text())
    articles = len(page.all("article"))
    assert articles == led + 2
    for kind, count in (("image", 1), ("truth", 1), ("prediction", 2), ("difference", 2)):
        assert len(page.all("button", **{"data-kind": kind})) == count * articles
    for colour in COLOURS[:2]:
        assert len(page.all("polyline", stroke=colour)) == 7


def test_the_best_of_a_row_is_bold_unless_it_is_shared(comparison: Path):
    a, b = json.loads((comparison / "scores.json").read_text()).values()
    rows = [
        (a[key], b[key])
        for key in ("miou", "mpa", "pixel_accuracy", "fwiou", "image_miou", "image_mpa")
    ]
    bold = [max(row) for row in rows if row[0] != row[1]] + [min(a["loss"], b["loss"])]
    for name in a["iou"]:
        rows = [(a[key][name], b[key][name]) for key in ("iou", "accuracy")]
        bold += [max(row) for row in rows if row[0] != row[1]]
    page = (comparison / "report.html").read_text()
    assert re.findall(r'class="score best"[^>]*>([^<]*)<', page) == [
        f"{value:.4f}" for value in bold
    ]


def test_text_from_files_is_text_in_the_report(runs: list[Path], tmp_path: Path):
    meta = read_checkpoint(runs[0])
    meta |= {"classes": ["a", HOSTILE, "c"], "command": HOSTILE}
    save_checkpoint(tmp_path / "hostile.pt", meta)
    flags = ("--out", tmp_path / "out", "--top", 1)
    assert run_script("evaluate", tmp_path / "hostile.pt", *flags) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert HOSTILE not in page and html.escape(HOSTILE) in page
    assert len(Elements(page).all("script")) == 1


def test_a_second_report_leaves_no_picture_of_the_first(runs: list[Path], tmp_path: Path):
    for top, count in ((3, 12), (0, 0)):
        assert run_script("evaluate", runs[0], "--out", tmp_path, "--top", top) == 0
        assert len(list((tmp_path / "report_pictures").iterdir())) == count


def test_checkpoints_without_a_history_have_a_report(runs: list[Path], tmp_path: Path):
    meta = read_checkpoint(runs[0])
    for key in ("history", "environment", "seconds", "command", "encoder_weights"):
        meta.pop(key)
    save_checkpoint(tmp_path / "average.pt", meta)
    assert run_script("evaluate", tmp_path / "average.pt", "--out", tmp_path, "--top", 0) == 0
    assert "No training history is stored" in (tmp_path / "report.html").read_text()
    told = dict(table_rows(tmp_path / "report.html", "Runs")[1:])
    for fact in ("command", "training time", "hardware", "software"):
        assert told[fact] == "unknown"
    assert told["recipe"] == "3 epochs, batch 8, learning rate 0.002"
    save_checkpoint(tmp_path / "average.pt", meta | {"seconds": 7384.6})
    assert run_script("evaluate", tmp_path / "average.pt", "--out", tmp_path, "--top", 0) == 0
    assert dict(table_rows(tmp_path / "report.html", "Runs")[1:])["training time"] == "2:03:05"


def test_the_report_of_an_average_says_how_its_members_were_trained(
    runs: list[Path], tmp_path: Path
):
    members, average = [*runs, runs[0]], tmp_path / "average.pt"
    assert run_script("ensemble", *members, "--weights", 1, 3, 1, "--out", average) == 0
    assert run_script("evaluate", average, "--out", tmp_path, "--top", 0) == 0
    rows = table_rows(tmp_path / "report.html", "Runs")
    heads, *facts = rows
    assert heads == [
        "",
        "average",
        *(f"average: {name}" for name in ("unet 1", "segformer", "unet 2")),
    ]
    told = {name: values for name, *values in facts}
    assert told["checkpoint"] == [str(average), *map(str, members)]
    rates = [f"3 epochs, batch 8, learning rate {rate}" for rate in (0.002, 0.001, 0.002)]
    assert told["recipe"] == [f"weighted average of {', '.join(map(str, members))}", *rates]
    assert told["seed"] == ["none", "3", "3", "3"]
    assert told["command"][1:] == [read_checkpoint(member)["command"] for member in members]
    assert told["encoder weights"] == [
        "members: none, none, none",
        *["none: trained from random numbers"] * 3,
    ]
    own = [model.split(", ")[1].split()[0] for model in told["model"]]
    total, first, second, third = (int(count.replace(",", "")) for count in own)
    assert first == third != second and total == first + second + third + 3  # and the weights
    assert "None" not in str(rows)


def entry(label: str, values: dict[str, float | None]) -> Entry:
    images = [{"name": name, "miou": value, "mpa": value} for name, value in values.items()]
    return Entry(label, label, 0, {}, {"images": images})


def test_the_choice_of_examples():
    a = entry("a", {"p": 0.5, "q": 0.9, "r": None, "s": 0.1, "t": 0.3})
    assert choose_examples([a], 2) == {"Best images": ["q", "p"], "Worst images": ["s", "t"]}
    assert choose_examples([a], 9) == {"Best images": ["q", "p"], "Worst images": ["s", "t"]}
    b = entry("b", {"p": 0.6, "q": 0.1, "r": 0.9, "s": 0.1, "t": 0.6})
    assert choose_examples([a, b], 1) == {
        "Where a leads most": ["q"],
        "Where b leads most": ["t"],
        "Hardest for all": ["s"],
    }


def test_the_best_of_several_is_the_only_one_with_its_value():
    assert index_of_best([0.2, None, 0.4]) == 2
    assert index_of_best([0.2, 0.1], min) == 1
    for values in ([0.4, 0.4], [0.4], [None, None]):
        assert index_of_best(values) is None


def history(epochs: int, factor: float = 1.0) -> list[dict]:
    keys = ("train_loss", "val_loss", "val_miou", "val_mpa", "lr", "train_miou", "train_mpa")
    return [{"epoch": e + 1, **dict.fromkeys(keys, factor / (e + 2))} for e in range(epochs)]


def points(panel: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'points="([^"]*)"', panel)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_curves_are_valid_svg_with_the_values_in_their_places():
    root = ET.fromstring(curves_svg({"a & b": history(5), "c": history(9, 0.5)}))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "a & b" in "".join(root.itertext())
    loss, miou, _, rate = curve_panels({"a": history(5), "c": history(9, 0.5)})
    assert len(points(loss)) == 4 and loss.count("line training") == 2
    assert miou.count("line training") == 2
    first, of_training, second, _ = points(miou)
    assert first == of_training
    assert len(first) == 5 and len(second) == 9
    assert first[4][0] == second[4][0]  # the same epoch
    assert first[0][1] < first[1][1] < first[4][1]  # y points down, values fall
    assert first[2][1] == pytest.approx(second[0][1], abs=0.1)  # 1 / 4 and 0.5 / 2
    assert points(rate)[0][0][1] < points(rate)[1][0][1]


ZEROS = {"lr": 0.0, "val_miou": None, "train_miou": None, "val_loss": float("nan")}


@pytest.mark.parametrize(
    ("runs", "lines", "empty"),  # of the four panels: their lines, and those that say "none"
    [
        ({}, 0, 4),
        ({"a": []}, 0, 4),
        ({"a": history(1)}, 7, 0),
        ({"a": [row | ZEROS for row in history(3)]}, 4, 1),
        ({"a": [row | {"val_miou": 0.5} for row in history(3)]}, 7, 0),
        ({"a": [{"epoch": 1, "val_miou": 0.5}]}, 1, 3),  # of an older checkpoint
        ({"a": history(2000)}, 7, 0),
    ],
)
def test_curves_of_odd_histories_are_drawn_or_say_that_there_are_none(
    runs: dict, lines: int, empty: int
):
    text = curves_svg(runs)
    ET.fromstring(text)
    assert text.count("<polyline") == lines and text.count(": none<") == empty
    assert all(0 < x < 300 and 0 < y < 210 for line in points(text) for x, y in line)


def test_training_draws_its_curves(runs: list[Path]):
    text = (runs[0].parent / "curves.svg").read_text()
    ET.fromstring(text)
    assert all(len(line) == 3 for line in points(text)) and len(points(text)) == 7


def in_browser(page: Path, script: str, folder: Path) -> tuple[dict, list[str]]:
    """Run a script in a copy of a page -> the JSON value it returns, and the console's lines."""
    copy = folder / "copy.html"
    before, end, after = page.read_text().rpartition("</script>")
    probe = f"document.title = JSON.stringify((() => {{ {script} }})());"
    copy.write_text(before + probe + end + after)
    profile = folder / "profile"
    command = [CHROMIUM, *BROWSER, f"--user-data-dir={profile}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(title[1])) if title[1].startswith("{") else {}, said


USE = """
const $ = selector => document.querySelector(selector);
const all = selector => [...document.querySelectorAll(selector)];
const press = key => new KeyboardEvent("keydown", {key, bubbles: true});
const key = letter => viewer.dispatchEvent(press(letter));
const state = () =>
  [viewer.open, id("caption").textContent, mode, id("wipe").value, id("truth").hidden];
const shown = {};
shown.loaded = all("article img").every(image => image.complete && image.naturalWidth > 0);
shown.rows = all("#Classes + .scrollable tbody tr").length;
shown.cells = all(".matrix tbody td").length;
shown.pictures = all("article img").length;
shown.scroll = document.documentElement.scrollWidth - innerWidth;
shown.closed = viewer.open;
$("[data-kind=prediction]").click();
shown.opened = state();
key("f"); shown.flipped = state();
key("3"); shown.difference = [...state(), id("base").src == $("[data-kind=difference] img").src];
key("n"); shown.next = id("caption").textContent;
key("p"); shown.back = id("caption").textContent;
key("o"); shown.over = id("prediction").style.opacity;
id("wipe").value = 30; id("wipe").oninput(); shown.wiped = state();
shown.legend = all("#colours li").length;
id("close").click(); shown.shut = viewer.open;
return shown;
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_report_and_its_viewer(single: Path, tmp_path: Path):
    shown, said = in_browser(single / "report.html", USE, tmp_path)
    assert not said
    titles = [
        a["data-title"]
        for a in Elements((single / "report.html").read_text()).all(
            "button", **{"data-kind": "prediction"}
        )
    ]
    assert (shown["loaded"], shown["rows"], shown["cells"], shown["pictures"]) == (True, 3, 9, 8)
    assert shown["scroll"] <= 0 and not shown["closed"]
    assert shown["opened"] == [True, titles[0], "labels", "100", False]
    assert shown["flipped"] == [True, titles[0], "labels", "0", False]
    assert shown["difference"] == [True, titles[0], "difference", "0", True, True]
    assert (shown["next"], shown["back"]) == (titles[1], titles[0])
    assert shown["over"] == "0.55" and shown["wiped"][2:] == ["labels", "30", False]
    assert shown["legend"] == 5 and not shown["shut"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_comparison(comparison: Path, tmp_path: Path):
    shown, said = in_browser(comparison / "report.html", USE, tmp_path)
    articles = len(Elements((comparison / "report.html").read_text()).all("article"))
    assert not said
    assert (shown["loaded"], shown["rows"], shown["cells"]) == (True, 3, 18)
    assert shown["pictures"] == 6 * articles and shown["scroll"] <= 0
    assert shown["opened"][1].count(", unet: mIoU") == shown["next"].count(", segformer: mIoU") == 1
