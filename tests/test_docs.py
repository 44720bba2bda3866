"""What the documents say holds: commands parse and run; flags, links and names exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from PIL import Image

from segmentation import build_model
from segmentation.arguments import ensemble_arguments, evaluation_arguments, training_arguments
from segmentation.checkpoint import read_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
README, DESIGN = ROOT / "README.md", ROOT / "docs/design.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {
    "train.py": training_arguments,
    "evaluate.py": evaluation_arguments,
    "ensemble.py": ensemble_arguments,
}
SUBMIT = ("oarsub", "sbatch")
OTHERS = {"--project", "--checkpoint", "--signal", "--requeue", "--gres"}  # flags of these two
# What makes a training end in seconds; the last of two equal flags wins.
SHORT = "--image-size 32 32 --crop 32 32 --batch-size 8 --augment 0 --epochs 1 --max-minutes 1"
SHORT += " --workers 0 --encoder-weights none"


def blocks(path: Path, language: str = "") -> list[str]:
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", path.read_text(), re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def inline(path: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))


def commands(path: Path, *, fenced_only: bool = False) -> list[list[str]]:
    """Script and flags; before them "torchrun", "oarsub" or "sbatch" where that starts it."""
    code = [*blocks(path), *([] if fenced_only else inline(path))]
    found = []
    for line in "\n".join(code).replace(" && ", "\n").splitlines():
        if not re.search(r"(^|[ /])(python3?|torchrun) .*\.py|^ *(oarsub|sbatch) ", line):
            continue
        words = shlex.split(line.split(" > ")[0], comments=True)
        if words[0] in SUBMIT:
            found.append([words[0], "train.py", *flags_of_job(words), "--resume"])
            continue
        place = next(i for i, word in enumerate(words) if word.endswith(".py"))
        found.append([*(["torchrun"] if "torchrun" in words[:place] else []), *words[place:]])
    return found


def flags_of_job(submission: list[str]) -> list[str]:
    """What run_oar.sh gives to train.py: `oarsub` takes its command as one word, `sbatch` not."""
    place = next((i for i, word in enumerate(submission) if "run_oar.sh" in word), None)
    if place is None:  # options alone
        return []
    words = [*submission[place].split()[1:], *submission[place + 1 :]]
    return ["--out", *(word.replace("%a", "7") for word in words)] if words else []


def parse(script: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises SystemExit where the script would end with argparse's message."""
    monkeypatch.setattr(sys, "argv", [script, *flags])
    PARSERS[script]("the documents'")


def flags_of(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> set[str]:
    with pytest.raises(SystemExit):
        parse(script, ["--help"], monkeypatch)
    return set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def name_of_case(value: str | list[str]) -> str:
    return value if isinstance(value, str) else shlex.join(value)[:60]


CALLS = [(path.name, command) for path in DOCUMENTS for command in commands(path)]


def test_the_documents_call_every_script():
    called = {word for _, command in CALLS for word in command[:2]}
    assert called >= {*PARSERS, "torchrun", *SUBMIT, "tests/benchmarks/parity.py"}


@pytest.mark.parametrize("document, command", CALLS, ids=name_of_case)
def test_a_command_is_one(document, command, monkeypatch, capsys):
    script, *flags = [word for word in command if word not in ("torchrun", *SUBMIT)]
    if script not in PARSERS:
        known = (ROOT / script).read_text() + " ".join(flags_of("train.py", monkeypatch, capsys))
        assert all(flag in known for flag in flags if flag.startswith("--"))
    elif "--help" not in flags:
        parse(script, flags, monkeypatch)


def test_flags_that_the_text_names_exist(monkeypatch, capsys):
    known = OTHERS.union(*(flags_of(script, monkeypatch, capsys) for script in PARSERS))
    named = {
        flag
        for path in DOCUMENTS
        for code in inline(path)
        for flag in re.findall(r"^--[\w-]+", code)
    }
    assert named <= known


def test_the_front_page_is_short_and_complete():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 160
    assert "@@" not in README.read_text()  # a figure that is still to be measured


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_files_and_commits_exist(path):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text()) if "://" not in link]
    files = [
        code for code in inline(path) if re.fullmatch(r"(segmentation|tests|docs)/\S+\.\w+", code)
    ]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert [file for file in files if not (ROOT / file).exists()] == []
    hashes = re.findall(r"\b(?=[a-f]*\d)(?=\d*[a-f])[\da-f]{7,40}\b", path.read_text())
    for commit in hashes if (ROOT / ".git").exists() else []:
        assert subprocess.run(["git", "cat-file", "-e", commit], cwd=ROOT).returncode == 0, commit


def test_the_map_names_every_file_and_no_other():
    named = set(re.findall(r"\w+\.(?:py|html|sh)", blocks(DESIGN)[0]))
    package = {
        path.name for path in (ROOT / "segmentation").rglob("*") if path.suffix in (".py", ".html")
    }
    package.discard("__init__.py")
    assert named == package | {"run_oar.sh", *PARSERS}


def test_collective_functions_are_where_the_design_says():
    rows = re.findall(r"^\| `(\S+\.py)` \| (.*) \|$", DESIGN.read_text(), re.MULTILINE)
    assert len(rows) > 8
    for file, functions in rows:
        source = (ROOT / file).read_text()
        for name in re.findall(r"`(\w+)`", functions):
            assert re.search(rf"(def|class) {name}\b", source), f"{name} in {file}"


def test_the_python_of_the_front_page_runs(tmp_path, monkeypatch):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    monkeypatch.chdir(tmp_path)
    config = {"model": "segformer", "num_classes": 5}
    weights = build_model(config).state_dict()
    Path("runs/segformer").mkdir(parents=True)
    about = {"config": config, "classes": list("abcde"), "model": weights}
    save_checkpoint("runs/segformer/best.pt", about)
    published = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150))
    published.save_pretrained("segformer-b0-ade")
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    names: dict = {}
    exec(code, names)
    assert names["labels"].shape == (1, 480, 640)
    assert all(parameter.grad is not None for parameter in names["unet"].parameters())
    assert len(names["published"].classes) == 150


def write_pairs(folder: Path, label: int) -> Path:
    """16 pairs of 40 x 40 pixels: a bright box of one label on dark noise of label 0."""
    for number in range(16):
        generator = np.random.default_rng(number)
        mask = np.zeros((40, 40), np.uint8)
        mask[8:30, 5 + number : 20 + number] = label
        image = 180 * (mask[..., None] > 0) + generator.integers(0, 60, (40, 40, 3))
        for kind, array in (("images", image.astype(np.uint8)), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{number:02}.png")
    return folder


def run(command: list[str], folders: dict[bool, Path]) -> int:
    """Run a document's command, shortened, on two ranks where torchrun starts it -> its exit code.

    folders: data of labels 0 and 1 (False), and of 0 and 255 for --label-map (True).
    """
    torchrun, (script, *flags) = command[0] == "torchrun", [w for w in command if w != "torchrun"]
    folder = folders["--label-map" in flags]
    for place, flag in enumerate(flags[:-1]):
        if flag in ("--data", "--images"):
            flags[place + 1] = str(folder / "images" if flag == "--images" else folder)
    flags += SHORT.split() if script == "train.py" else []
    if not torchrun:
        return run_script(script.removesuffix(".py"), *flags)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, str(ROOT / script), *flags], env=environment).returncode


@pytest.mark.slow
def test_the_commands_run_one_after_another(tmp_path, monkeypatch):
    """README's as they stand; those of docs/ after them, each training in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    folders = {True: write_pairs(tmp_path / "grey", 255), False: write_pairs(tmp_path / "plain", 1)}
    for path in DOCUMENTS:
        for command in commands(path, fenced_only=True):
            if command[0] in SUBMIT or not {*command[:2]} & {*PARSERS}:
                continue
            if "--compile" in command or "cuda" in command:
                continue
            if path != README and "train.py" in command:
                after = dict(pairwise(command))
                out = after.get("--out", f"runs/{after.get('--model', 'segformer')}")
                shutil.rmtree(out, ignore_errors=True)
            assert run(command, folders) == 0, shlex.join(command)


def test_a_checkpoint_has_the_documented_keys(tmp_path, trained):
    table = DESIGN.read_text().split("## Checkpoint")[1]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    documented = set(re.findall(r"\w+", " ".join(rows)))
    average = tmp_path / "uformer.pt"
    members = [trained(model) / "best.pt" for model in ("unet", "segformer")]
    assert run_script("ensemble", *members, "--out", average) == 0
    last = read_checkpoint(trained("segformer") / "last.pt")
    assert last.keys() | read_checkpoint(average).keys() == documented
