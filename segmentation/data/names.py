"""What the path of a file says: image or mask, which split, and which others belong to it."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import BadInput

SPLITS = ("train", "val", "test")
TYPES = "png jpg jpeg jpe jfif bmp tif tiff webp gif ppm pgm pbm tga jp2 avif"
SUFFIXES = {f".{kind}" for kind in TYPES.split()}
HIDDEN = re.compile(r"\.|__macosx$|thumbs\.db$|desktop\.ini$", re.IGNORECASE)
DEEPEST = 6  # folders below the root

# What a word of a name says, in any case. Words stand between signs that are no letters or digits.
IMAGES = "image images img imgs input inputs photo photos jpegimages leftimg8bit"
MASKS = (
    "mask masks label labels lab labs annotation annotations annot annots ann gt gts gtfine truth "
    "groundtruth target targets seg segmentation semantic segmentationclass segmentationclasspng "
    "stuffthingmaps"
)
WORDS = {
    "images": IMAGES,
    "masks": MASKS,
    "train": "train training",
    "val": "val valid validation",
    "test": "test testing",
    "nothing": "default dir ground original set",
}
MEANINGS = {word: meaning for meaning, words in WORDS.items() for word in words.split()}
# trainannot, train2017
GLUED = re.compile(
    r"(?<![a-z0-9])(train|training|val|valid|validation|test|testing|default)(?=annot|image|mask|label|\d)"
)
# What may be added to the name of an image, or of a mask.
ADDED = f"{IMAGES} {MASKS} l p rgb sat labeltrainids labelids labellevel3ids".replace(" ", "|")
ADDED_WORD = re.compile(rf"[-_. ]*(?<![a-z0-9])({ADDED})(?![a-z0-9])", re.IGNORECASE)


class File(NamedTuple):
    """A file below the root, and what its path says."""

    name: str  # with the folders
    folder: str
    stem: str
    role: str  # "images", "masks" or ""
    split: str  # or ""
    rest: frozenset[str]  # other words of the folders; an image's and its mask's are alike


def list_names(root: Path) -> list[str]:
    """All visible files below the root, sorted. BadInput if a folder cannot be listed."""

    def fail(error: OSError) -> None:
        raise BadInput(
            f"{error.filename}: cannot be listed ({error.strerror}); give another folder"
        )

    names = []
    for place, inner, files in os.walk(root, followlinks=True, onerror=fail):
        folder = Path(place).relative_to(root)
        found = [*files, *filter(is_image, inner)]  # a folder like a.png will be said to be one
        names += [(folder / name).as_posix() for name in found if not HIDDEN.match(name)]
        inner[:] = [name for name in inner if not HIDDEN.match(name)]
        if len(folder.parts) == DEEPEST:
            inner.clear()
    return sorted(names)


def is_image(name: str) -> bool:
    """Whether the ending is one of an image."""
    return Path(name).suffix.lower() in SUFFIXES


def not_read(names: list[str], read: set[str]) -> list[str]:
    """A sentence that counts images that are not read, and files beside those that are."""
    folders = set(map(os.path.dirname, read))
    counts: Counter[str] = Counter()
    for name in names:
        folder = os.path.dirname(name)
        if name in read:
            continue
        if is_image(name):
            counts[f"images in {folder}/"] += 1
        elif folder in folders:
            counts[f"{Path(name).suffix} files"] += 1
    most = ", ".join(f"{count} {what}" for what, count in counts.most_common(5))
    return [f"{counts.total()} files are not read: {most}"] if counts else []


def read_name(name: str, outer: int = 0) -> File:
    """What a path says; the last folder that says a role or a split decides.

    outer: folders around all of the files; they say no role.
    """
    *folders, last = name.split("/")
    role = split = ""
    rest: frozenset[str] = frozenset()
    for depth in reversed(range(len(folders))):
        words = re.split("[^a-z0-9]+", GLUED.sub(r"\1 ", folders[depth].lower()))
        meanings = [MEANINGS.get(word) for word in words]
        if depth >= outer:
            role = role or next((each for each in ("masks", "images") if each in meanings), "")
        split = split or next((each for each in SPLITS if each in meanings), "")
        rest |= {*words} - MEANINGS.keys()
    return File(name, "/".join(folders), stem_of(last), role, split, rest)


def stem_of(name: str) -> str:
    """The name of a file without its endings: a of a.jpg.png."""
    path = Path(name)
    ends = is_image(name) or path.suffix == ".json"
    # macOS writes a letter and its accent as two characters.
    return stem_of(path.stem) if ends else unicodedata.normalize("NFC", path.name)


# Words of folders that do not count: none; those that all files have, so that RUGD_frames/creek and
# RUGD_annotations/creek are alike; all.
IgnoredOf = Callable[..., frozenset[str]]
IGNORED_WORDS: list[IgnoredOf] = [
    lambda *rests: frozenset(),
    frozenset.intersection,
    frozenset.union,
]


class Way(NamedTuple):
    """How the stems of an image and its mask are made equal."""

    before: str  # what masks have before the image's stem
    after: str
    words: bool  # whether words like mask are taken out of all stems
    ignored: IgnoredOf  # of IGNORED_WORDS

    def group(self, files: list[File]) -> dict[tuple[str, frozenset[str], str], list[File]]:
        """Split, other words and stem -> the files, of which there is one in sound sets."""
        groups = defaultdict(list)
        ignored = self.ignored(*[file.rest for file in files])
        for file in files:
            stem = file.stem.removeprefix(self.before).removesuffix(self.after)
            if self.words:
                stem = ADDED_WORD.sub("", stem).strip("-_. ")
            groups[file.split, file.rest - ignored, stem].append(file)
        return groups


def find_way(images: list[File], masks: list[File]) -> Way:
    """The way in which the most images have a mask, with as many words of folders as can count."""
    cuts = {("", "")}
    for mask in masks[:1] + masks[-1:]:
        for image in images:
            before, found, after = mask.stem.partition(image.stem)
            if found and not (before[-1:] + after[:1]).isdigit():  # 1 is not the image of 12
                cuts.add((before, after))

    def pairs(way: Way) -> int:
        return len(way.group(images).keys() & way.group(masks).keys())

    for ignored in IGNORED_WORDS:
        ways = [Way(*cut, words, ignored) for words in (False, True) for cut in sorted(cuts)]
        best = max(ways, key=pairs)
        if pairs(best):
            break
    return best
