"""Known layouts of a data set: where images and masks lie, how they pair, which splits are given.

A layout is recognised by what is in the folder.
"""

import os
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import BadInput
from .classes import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_IDS,
    TABLES,
    drone_classes,
    numbered_classes,
    read_classes,
)
from .drawn import Drawing, read_drawings
from .labels import ClassTable
from .names import (
    MEANINGS,
    SPLITS,
    File,
    find_way,
    is_image,
    list_names,
    not_read,
    read_name,
    stem_of,
)
from .problems import listing

LOOKED_FOR = """
  drone, 5 classes: [classes_dataset/]classes_dataset/original_images/*.png \
and label_images_semantic/*.png beside it
  drone, binary: [binary_dataset/]binary_dataset/original_images/*.png \
and images_semantic/*.png beside it
  drone, original: any original_images/*.jpg and label_images_semantic/*.png (0..23) beside it
  CamVid: train/, val/ (test/ if there is one) and trainannot/, valannot/ (testannot/)
  Cityscapes: leftImg8bit/ and gtFine/ with labelTrainIds or labelIds; ADE20K; Pascal VOC
  generic: images/ and masks/, by these or other usual names, alone, in or around train/, val/ and
    test/; or a.jpg and a_mask.png in one folder; and classes.csv: index,name,r,g,b
  drawn: labelme's a.json beside a.jpg; COCO's .json with polygons, as which most tools export"""


Splits = dict[str, list[str]]  # split -> names
Pairs = dict[str, str]  # image -> mask, as names below the root


class Kind(NamedTuple):
    """A layout that the names of its files tell, and the classes where no table lies beside."""

    name: str
    paths: str = ""  # found in the paths of an image and its mask, in small letters
    classes: ClassTable | None = None
    said: str = "its classes are numbers"


KINDS = [
    Kind("drone", r"/original_images/.* .*images_semantic/"),
    Kind("cityscapes", r"_leftimg8bit\..*_labeltrainids\.", CITYSCAPES, "its 19 classes"),
    Kind("cityscapes", r"_leftimg8bit\..*_labelids\.", CITYSCAPES_IDS, "its 19 classes"),
    Kind("ade20k", "/ade_.*/ade_", ADE20K, "150 classes, stored as 1..150; 0 is ignored"),
    Kind(
        "camvid",
        "(train|val|test)annot/",
        CAMVID,
        "taken for CamVid, its 11 classes; for others write classes.csv",
    ),
    Kind("pascal voc", "/jpegimages/.*/segmentationclass"),
    Kind("generic"),
]
LABEL_ENDINGS = ("_labeltrainids", "_labelids")  # of Cityscapes; the first one there is taken


@dataclass(frozen=True)
class Layout:
    """What a folder is, and the pairs in it."""

    name: str
    pairs: Pairs  # sorted
    drawings: dict[str, Drawing]  # image -> what is drawn on it, where its mask is a JSON file
    splits: Splits  # empty lists: the data set gives none
    classes: ClassTable | None  # None: the masks themselves say how many classes there are
    masks: str  # the folder of the first mask, below the root
    problems: list[str]  # files without a partner, drawings that cannot be painted
    notes: list[str]  # what was recognised, what is not read


def find_layout(root: Path, task: str) -> Layout:
    """Recognise the folder and pair its files.

    BadInput, with a list of the layouts looked for, if it is none of them.
    """
    if not root.is_dir():
        raise BadInput(
            f"{root}: no such folder; give --data a folder of images and masks, or scenes"
        )
    names = list_names(root)
    # What evaluate.py predicted is no mask of the images it may lie beside.
    predicted = {name.replace("confidence/", "labels/") for name in names if "confidence/" in name}
    files = [name for name in names if is_image(name) and name not in predicted]
    around = os.path.commonpath(map(os.path.dirname, files)) if files else ""
    images = [read_name(name, len(Path(around).parts)) for name in files]
    masks = [file for file in images if file.role == "masks"]
    masks = masks or [file for file in images if read_name(f"{file.stem}/").role == "masks"]
    images = sorted(set(images) - set(masks))
    for ending in LABEL_ENDINGS:
        masks = [file for file in masks if file.stem.lower().endswith(ending)] or masks
    problems: list[str] = []
    drawings: dict[str, Drawing] = {}
    if images and masks:
        pairs = _pair(names, images, masks, problems)
        example = (
            f"the first are {images[0].name} and {masks[0].name}; "
            "before and after an image's name all masks may have the same letters"
        )
        if not pairs:
            none = f"{root}: no image has a mask of its name, or all have several"
            raise BadInput(listing(none, problems or [example]))
        kind, pairs = _recognise(root, names, pairs, task)
    else:
        name, classes, drawings = read_drawings(root, names, images, problems)
        table = ClassTable(classes, numbered_classes(len(classes)).palette)
        kind = Kind(name, classes=table, said="what no shape covers is background")
        pairs = {image: drawing.file for image, drawing in drawings.items()}
    if not pairs and not problems:
        raise BadInput(f"{root}: {_nearest(root, files)}. The program looked for{LOOKED_FOR}")
    if task == "binary" and kind.classes and len(kind.classes.names) != 2:
        raise BadInput(
            f"{root}: --task binary needs two classes, this table has {len(kind.classes.names)}; "
            "leave out --task binary"
        )

    notes = [f"{image} with {mask}; {kind.said}" for image, mask in list(pairs.items())[:1]]
    split_of = {image: read_name(image).split for image in pairs}
    if kind.name == "coco":  # instances_val.json, of images in one folder
        split_of |= {image: read_name(f"{pairs[image][:-5]}/").split for image in pairs}
    if not any(split_of.values()):
        split_of = _by_lists(root, names, list(pairs), problems, notes)
    splits = {split: [name for name in pairs if split_of[name] == split] for split in SPLITS}
    others = [name for name in names if os.path.basename(name).lower() not in TABLES]
    used = {image: mask for image, mask in pairs.items() if split_of[image]} or pairs
    notes += not_read(others, {*used, *used.values()})
    if any(splits.values()) and not splits["val"]:
        notes.append("the folder gives no val: it is drawn from train")
    at = os.path.dirname(min(pairs.values(), default=""))
    return Layout(kind.name, pairs, drawings, splits, kind.classes, at, problems, notes)


def _pair(
    names: list[str],
    images: list[File],
    masks: list[File],
    problems: list[str],
) -> Pairs:
    """Image -> mask. Adds a problem for each without a partner where others beside have one."""
    named = [file for file in images if file.role]
    for chosen in filter(None, (named, images)):  # beside trainannot/, images lie in train/
        way = find_way(chosen, masks)
        of_images, of_masks = way.group(chosen), way.group(masks)
        shared = of_images.keys() & of_masks.keys()
        if shared:
            break
    unsplit = {key for key in shared if not key[0]}
    shared = max(unsplit, shared - unsplit, key=len)  # of a set and its copy in splits one is read
    pairs = {}
    beside: dict[str, str] = {}  # folder -> that of the partners
    for key in shared:
        image, mask = of_images[key][0], of_masks[key][0]
        beside |= {image.folder: mask.folder, mask.folder: image.folder}
        if len(of_images[key]) == len(of_masks[key]) == 1:
            pairs[image.name] = mask.name
    unread = {Path(name).stem: name for name in names if not is_image(name)}
    for found, others, what in ((of_images, of_masks, "mask"), (of_masks, of_images, "image")):
        for key, (first, *more) in found.items():
            if first.folder not in beside:
                continue
            problems += [
                f"{file.name}: same name as {first.name}; keep one of them" for file in more
            ]
            if key not in others:
                stem = f"{way.before}{key[2]}{way.after}" if what == "mask" else key[2]
                other = unread.get(key[2])
                why = f" ({other} is not read: save it as PNG)" if other else ""
                problems.append(f"{first.name}: no {what} {beside[first.folder]}/{stem}.*{why}")
    return dict(sorted(pairs.items()))


def _recognise(
    root: Path,
    names: list[str],
    pairs: Pairs,
    task: str,
) -> tuple[Kind, Pairs]:
    """The kind of the pairs, with its classes, and those pairs that belong to the task."""
    path = "/{} /{}".format(*min(pairs.items())).lower()
    kind = next(kind for kind in KINDS if re.search(kind.paths, path))
    if kind.name == "drone":
        return _drone(root, pairs, task)
    folders = {os.path.dirname(name) for pair in pairs.items() for name in pair}
    for file in TABLES:
        tables = [
            root / name
            for name in names
            if os.path.basename(name).lower() == file
            and any(f"{folder}/".startswith(os.path.dirname(name)) for folder in folders)
        ]
        if len({table.read_bytes() for table in tables}) > 1:
            raise BadInput(f"{tables[0]} and {tables[1]} differ: keep one table of classes")
        if tables:
            classes = read_classes(tables[0])
            said = f"classes of {tables[0].name}{', 0 is ignored' if classes.labels else ''}"
            return kind._replace(classes=classes, said=said), pairs
    return kind, pairs


def _drone(root: Path, pairs: Pairs, task: str) -> tuple[Kind, Pairs]:
    """The one drone set that has masks for the task."""
    sets: dict[str, Pairs] = defaultdict(dict)
    for image, mask in pairs.items():
        sets[os.path.dirname(mask)][image] = mask
    found = defaultdict(list)
    for folder in sets:
        binary = os.path.basename(folder) == "images_semantic"
        found["drone binary" if binary else _drone_name(root, sets[folder])].append(folder)
    name = "drone binary" if task == "binary" else "drone"
    if name not in found:
        name = "drone original"  # its ids can be grouped for either task
    if name not in found:
        way = "leave out --task binary" if task == "binary" else "add --task binary"
        raise BadInput(
            f"{root}: holds {' and '.join(found)} only, no masks for the {task} task; {way}"
        )
    if len(found[name]) > 1:
        raise BadInput(f"{root}: several data sets: {', '.join(found[name])}; give --data one")
    classes = drone_classes(task, grouped=name != "drone original")
    return Kind(name, classes=classes, said="its own classes"), sets[found[name][0]]


def _drone_name(root: Path, pairs: Pairs) -> str:
    """The five-class set or the original: their folders have the same names."""
    place = f"{root}/{min(pairs)}"
    if "classes_dataset/" in place:
        return "drone"
    if "semantic_drone_dataset/" in place or not all(name.endswith(".png") for name in pairs):
        return "drone original"
    for mask in list(pairs.values())[:8]:
        with suppress(OSError), Image.open(root / mask) as image:  # named when all are read
            if np.asarray(image).max() > 4:
                return "drone original"
    raise BadInput(
        f"{root}: ids 0 to 4 can be five classes or the first of the original 24; "
        "put the set into a folder classes_dataset/ or semantic_drone_dataset/"
    )


def _by_lists(
    root: Path,
    names: list[str],
    images: list[str],
    problems: list[str],
    notes: list[str],
) -> dict[str, str]:
    """Image -> split, by ImageSets/Segmentation/*.txt, or else by val.txt and its like.

    A line is an image, or has one before its first space or comma. An image in no list is in no
    split, and may lack a mask; without a list of train it is of train.
    """
    texts = [Path(name) for name in names if name.endswith(".txt")]
    in_sets = [text for text in texts if text.parent.name == "Segmentation"]
    texts = in_sets or [text for text in texts if MEANINGS.get(text.stem.lower()) in SPLITS]
    # Where images of two folders have one name, the folder counts too.
    depth = 1 if len({*map(stem_of, images)}) == len(images) else 2

    def end_of(name: str) -> str:
        return "/".join([*Path(name).parts[-depth:-1], stem_of(name)])

    ends = {*map(end_of, images)}
    lists: dict[str, set[str]] = defaultdict(set)
    for text in texts:
        lines = (root / text).read_text("utf-8", "replace").splitlines()
        for line in filter(None, (line.strip(' "') for line in lines)):
            first = end_of(re.split("[ ,\t]", line)[0])
            end = end_of(line) if first not in ends or end_of(line) in ends else first
            lists[MEANINGS.get(text.stem.lower(), "")].add(end)
    listed = set().union(*lists.values())
    if not listed & ends:
        notes += [f"{text} names none of the images, and is not read" for text in texts]
        return dict.fromkeys(images, "")
    rest = "train"
    if in_sets or lists["train"]:
        rest = ""
        problems[:] = [each for each in problems if end_of(each.split(":")[0]) in listed]
    problems += [f"{end}: listed, but no image with a mask" for end in sorted(listed - ends)]
    return {
        image: next((split for split in reversed(SPLITS) if end_of(image) in lists[split]), rest)
        for image in images
    }


def _nearest(root: Path, files: list[str]) -> str:
    """What there is of images and masks: empty folders, and what the missing ones could be."""
    folders = [path for path in (*root.glob("*"), *root.glob("*/*")) if path.is_dir()]
    places = sorted(f"{path.relative_to(root).as_posix()}/" for path in folders)
    roles = {place: read_name(place).role for place in places}
    empty = [place for place in places if roles[place] and place not in " ".join(files)]
    if empty:
        return f"{', '.join(empty)}: holds no images, and masks are images too"
    rest = ", ".join(place for place in places if not roles[place])
    missing = [role for role in ("images", "masks") if role not in roles.values()]
    if len(missing) == 1:
        return f"{missing[0]}/ is not there; if it is one of these, rename it: {rest or 'none'}"
    return "not a data set this program knows"
