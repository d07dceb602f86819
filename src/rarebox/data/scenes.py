"""The embedded data set ``scenes``: handwritten digits hidden in busy pictures, generated from a seed.

The objects are the 1,797 digits of 8 x 8 pixels that come with scikit-learn (UCI "Optical Recognition of Handwritten
Digits"), drawn smoothly at 20 to 64 pixels. Among them are distractors, which are *not* objects: pieces and mirror
images of digits, letters, scribbles and blobs. The same pen draws them, so only their shape differs. The ten classes
``zero`` to ``nine`` have a long tail: each is rarer than the one before by a constant factor. Training and test
pictures share no digit. :mod:`rarebox.data.drawing` draws the pictures.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from rarebox.core.seeds import stream
from rarebox.data.coco import CocoCategory, CocoFile
from rarebox.data.drawing import DEFAULT_LOOK, Look, check_room, draw
from rarebox.errors import UserError
from rarebox.types import Floats, Ints

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECIPE = 2  # incremented whenever the same parameters would draw other pictures


def make(
    folder: Path | str,
    seed: int = 0,
    train: int = 400,
    test: int = 150,
    size: tuple[int, int] = (192, 256),
    look: Look = DEFAULT_LOOK,
) -> Path:
    """Write the data set in COCO format to ``folder`` and return the folder: train.json, test.json, images/*.jpg.

    ``size`` is (height, width) in pixels, at least 96 each, with room for all that ``look`` may draw in a picture.
    ``train`` and ``test`` count pictures. ``file_name`` is relative to the folder, category ids start at 1, image ids
    are unique over both splits, and each annotation has ``digit``, an index into ``sklearn.datasets.load_digits()``.
    The same arguments and library versions give the same bytes.

    The folder appears whole or not at all. A folder made earlier with the same arguments is reused. Raises `UserError`
    if the folder was made with other arguments or holds anything else, or if the pictures are too small.
    """
    folder = Path(folder)
    wanted = _parameters(seed, train, test, size, look)
    if _is_made(folder, wanted):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    draft = Path(tempfile.mkdtemp(prefix=_draft_prefix(folder), dir=folder.parent))
    try:
        _write(draft, seed, train, test, size, look)
        (draft / "scenes.json").write_text(json.dumps(wanted, indent=1) + "\n")
        draft.chmod(0o755)  # mkdtemp lets only the owner in
        _publish(draft, folder, wanted)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


# ---------------------------------------------------------------------------------------------- the folder


def _parameters(seed: int, train: int, test: int, size: tuple[int, int], look: Look) -> dict[str, object]:
    """Everything that decides what is drawn, as scenes.json holds it."""
    if min(train, test) < 1:
        raise UserError(f"scenes: each split must have at least one picture, not train={train}, test={test}")
    check_room(size, look)
    wanted = {"recipe": RECIPE, "seed": seed, "train": train, "test": test, "size": size, "look": asdict(look)}
    return json.loads(json.dumps(wanted))  # tuples become lists, as they do in the file


def _is_made(folder: Path, wanted: dict[str, object]) -> bool:
    """Whether the folder holds exactly these scenes. Raises `UserError` if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found: dict[str, object] = dict(json.loads((folder / "scenes.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{folder}: this folder does not hold scenes. Choose another folder, or delete it.") from None
    if found != wanted:
        said = ", ".join(f"{k} is {found.get(k)}, not {wanted[k]}" for k in wanted if found.get(k) != wanted[k])
        raise UserError(
            f"{folder}: the scenes there have different settings ({said}). Choose another folder, or delete it."
        )
    return True


def _draft_prefix(folder: Path) -> str:
    return f".{folder.name}.draft-"


def _sweep(folder: Path, older_than_seconds: float = 3600) -> None:
    """Remove the old drafts of killed runs beside the folder. A younger draft may be in progress in another process."""
    for draft in folder.parent.glob(_draft_prefix(folder) + "*"):
        with suppress(FileNotFoundError):  # its owner may finish it in the meantime
            if time.time() - draft.stat().st_mtime > older_than_seconds:
                shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path, wanted: dict[str, object]) -> None:
    """Rename the finished draft, unless another process has made the same scenes first."""
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        draft.rename(folder)
    except OSError:
        if not _is_made(folder, wanted):
            raise


def _write(folder: Path, seed: int, train: int, test: int, size: tuple[int, int], look: Look) -> None:
    (folder / "images").mkdir()
    inks, labels = _digits()
    pools = _split_digits(labels, seed)
    first_id = 1
    for split, count, imbalance in (("train", train, look.train_imbalance), ("test", test, look.test_imbalance)):
        rng = stream(seed, f"scenes {split} deal")
        dealt = _deal(rng, count, imbalance, [pools[split][c] for c in range(len(CLASSES))], look)
        spare = inks[np.concatenate(pools[split])]
        coco = _empty_coco()
        for number, digits in enumerate(dealt):
            rng = stream(seed, f"scenes {split}", number)
            pixels, boxes = draw(rng, inks[digits], spare, size, look)
            name = f"images/{split}_{number:04d}.jpg"
            Image.fromarray(pixels).save(folder / name, quality=92, subsampling=0)
            _add(coco, first_id + number, name, size, boxes, labels[digits], digits)
        first_id += count
        (folder / f"{split}.json").write_text(json.dumps(coco))


def _empty_coco() -> CocoFile:
    categories: list[CocoCategory] = [
        {"id": i + 1, "name": name, "supercategory": "digit"} for i, name in enumerate(CLASSES)
    ]
    info = {"description": "rarebox scenes: handwritten digits (UCI, by way of scikit-learn) in drawn pictures"}
    return {"info": info, "categories": categories, "images": [], "annotations": []}


def _add(
    coco: CocoFile,
    image_id: int,
    name: str,
    size: tuple[int, int],
    boxes: Floats,
    labels: Ints,
    digits: Ints,
) -> None:
    coco["images"].append({"id": image_id, "file_name": name, "width": size[1], "height": size[0]})
    for (x1, y1, x2, y2), label, digit in zip(boxes.tolist(), labels.tolist(), digits.tolist(), strict=True):
        width, height = x2 - x1, y2 - y1
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, width, height],
                "area": width * height,
                "iscrowd": 0,
                "digit": digit,
            }
        )


# ---------------------------------------------------------------------------------------------- the digits


def _digits() -> tuple[Floats, Ints]:
    """The inks (1797, 8, 8) in [0, 1] and the labels (1797,) of the handwritten digits."""
    # Here, because it takes two seconds and other data sets do not need it.
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]

    inks, labels = cast("tuple[ArrayLike, ArrayLike]", load_digits(return_X_y=True))
    return np.asarray(inks, np.float64).reshape(-1, 8, 8) / 16, np.asarray(labels, np.int64)


def _split_digits(labels: Ints, seed: int) -> dict[str, list[Ints]]:
    """Indices of the digits of each class in each split: two thirds for train, one third for test."""
    rng = stream(seed, "scenes digits")
    shuffled = [rng.permutation(np.flatnonzero(labels == c)) for c in range(len(CLASSES))]
    return {"train": [s[: 2 * len(s) // 3] for s in shuffled], "test": [s[2 * len(s) // 3 :] for s in shuffled]}


def class_counts(total: int, imbalance: float, classes: int = len(CLASSES)) -> Ints:
    """Objects of each class, (classes,), which sum to ``total`` and fall geometrically.

    The first class is about ``imbalance`` times as frequent as the last. Every class gets one object if ``total``
    allows it. The rest is divided in proportion and rounded down. The first class gets the remainder.
    """
    share = imbalance ** -np.linspace(0, 1, classes)
    counts = (np.arange(classes) < total).astype(np.int64)
    counts += np.floor((total - counts.sum()) * share / share.sum()).astype(np.int64)
    counts[0] += total - counts.sum()
    return counts


def _deal(rng: np.random.Generator, pictures: int, imbalance: float, pools: Sequence[Ints], look: Look) -> list[Ints]:
    """Indices of the digits in each picture, 1 to ``max_objects`` of them. Each class cycles through its pool."""
    per_picture = rng.integers(1, look.max_objects, size=pictures, endpoint=True)
    counts = class_counts(int(per_picture.sum()), imbalance)
    digits = np.concatenate([np.resize(pool, count) for pool, count in zip(pools, counts, strict=True)])
    return np.split(rng.permutation(digits), np.cumsum(per_picture)[:-1])
