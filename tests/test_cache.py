"""The cache: read anew what is gone or changed, remove what nobody uses, say where it is."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pairs
from PIL import Image

from segmentation.data import cache
from segmentation.data.datasets import open_dataset
from segmentation.errors import BadInput


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/segmentation"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    write_pairs(tmp_path / "data")
    return tmp_path / "data"


def age(folder: Path, days: float) -> None:
    """As if its entries had been used so many days ago."""
    then = time.time() - 86400 * days
    for entry in folder.iterdir():
        os.utime(entry / "record.json", (then, then))


def test_an_entry_that_is_gone_in_the_middle_of_a_run_is_made_again(root, own_cache):
    data = open_dataset(str(root))
    name = data.splits["train"][0]
    image, mask = np.array(data.image(name)), np.array(data.mask(name))
    shutil.rmtree(own_cache)
    assert (data.image(name) == image).all() and (data.mask(name) == mask).all()
    shutil.rmtree(own_cache)
    (root / name).unlink()
    with pytest.raises(BadInput, match=f"{name} or masks/.* cannot be opened"):
        data.image(name)


def test_a_file_of_the_same_size_and_time_is_read_anew(root):
    """As unpacked from an archive whose files all have one time."""
    data = open_dataset(str(root))
    file = root / data.splits["train"][0]
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(file.with_suffix(".bmp"))
    file.unlink()
    name = f"images/{file.stem}.bmp"
    os.utime(root / name, (1, 1))
    assert not open_dataset(str(root)).image(name).any()
    white = Image.fromarray(np.full((40, 56, 3), 255, np.uint8))
    size = (root / name).stat().st_size
    white.save(root / name)
    os.utime(root / name, (1, 1))
    assert (root / name).stat().st_size == size
    assert open_dataset(str(root)).image(name).all()


def test_entries_that_nobody_uses_go_and_those_of_an_opened_set_stay(root, own_cache, tmp_path):
    open_dataset(str(root))
    used = sorted(own_cache.iterdir())
    age(own_cache, 29)
    open_dataset(str(root))  # used today
    age_of_other = cache.entry_of("another set")
    cache.store(age_of_other, np.zeros(9, np.uint8))
    os.utime(age_of_other / "record.json", (0, 0))
    open_dataset(str(root))
    assert sorted(own_cache.iterdir()) == used
    age(own_cache, 31)
    cache.tidy(time.time())
    assert not list(own_cache.iterdir())


def test_a_large_cache_loses_what_was_unused_longest(root, own_cache, monkeypatch):
    open_dataset(str(root))
    entries = sorted(own_cache.iterdir())
    size = sum(file.stat().st_size for file in entries[0].iterdir())
    for number, entry in enumerate(entries):
        then = time.time() - 3600 * (number + 1)
        os.utime(entry / "record.json", (then, then))
    monkeypatch.setattr(cache, "SHARE", 1.0)
    usage = type("Usage", (), {"free": -3 * size})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage)
    cache.tidy(time.time())
    kept = sorted(own_cache.iterdir())
    assert 0 < len(kept) < len(entries) and kept == entries[: len(kept)]


def test_what_a_long_reading_has_used_stays_in_a_cache_that_is_too_large(
    root, own_cache, monkeypatch
):
    open_dataset(str(root))
    entries = sorted(own_cache.iterdir())
    age(own_cache, 0.1)
    monkeypatch.setattr(cache, "SHARE", 0.0)
    cache.tidy(time.time() - 86400 * 0.2)  # began before these were used
    assert sorted(own_cache.iterdir()) == entries
    cache.tidy(time.time())
    assert not list(own_cache.iterdir())


def test_where_a_large_cache_lies_is_said(root, own_cache, monkeypatch, capsys):
    monkeypatch.setattr(cache, "WORTH_SAYING", 1000)
    open_dataset(str(root))
    assert f"cache: {own_cache} holds 0.0 GiB" in capsys.readouterr().out


def test_a_long_reading_is_told_once_in_a_log(root, monkeypatch, capsys):
    monkeypatch.setattr("segmentation.data.datasets.read_pair", slow)
    with pytest.raises(BadInput):
        open_dataset(str(root))
    told = [line for line in capsys.readouterr().out.splitlines() if "reading" in line]
    assert len(told) == 1 and told[0].startswith("reading 24 pairs: ") and "s left" in told[0]


def slow(*arguments) -> list[str]:
    time.sleep(0.2)
    return ["slow.png: unreadable"]
