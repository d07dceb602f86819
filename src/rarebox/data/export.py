"""Writing labels (and queries) in many formats, without losing whose they are and which images are labelled as a whole.

Every export is a folder of its own: the labels, the images (links, or copies), and ``rarebox.json``, which lists the
provenance of every box in the order in which the label files have them.
"""

import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml
from numpy.typing import NDArray

from rarebox.core.files import read_bytes, real, write_new
from rarebox.core.parsing import from_json
from rarebox.data import cvat, labelstudio
from rarebox.data.images import SUFFIXES, UnreadableImage, content_of
from rarebox.data.listings import EXPORT_MARK
from rarebox.data.naming import clean_all, file_names
from rarebox.data.remote import is_url
from rarebox.data.review import MODEL, ReviewTask, sheets, short
from rarebox.data.voc import to_one_based
from rarebox.data.yolo import label_file
from rarebox.errors import UserError, unknown_name
from rarebox.types import Floats, ImageRecord, Ints, Query, Source, as_boxes

_COLUMNS = ("boxes", "labels", "source", "scores", "class_weight", "box_weight")


@dataclass(frozen=True, eq=False)
class Annotations:
    """What is known of one image: N boxes, where each comes from (`Source`) and how far it is trusted.

    ``boxes`` (N, 4) in pixels of the original image, ``labels`` (N,) in [0, K), ``source`` (N,) strings, ``scores``,
    ``class_weight`` and ``box_weight`` (N,) in [0, 1]. ``complete`` says that a person has labelled every object.
    """

    image_id: int
    boxes: Floats
    labels: Ints
    source: NDArray[np.str_]
    scores: Floats
    class_weight: Floats
    box_weight: Floats
    complete: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", as_boxes(self.boxes))
        for name, dtype in zip(_COLUMNS[1:], (np.int64, np.str_, np.float32, np.float32, np.float32), strict=True):
            column = np.asarray(getattr(self, name), dtype=dtype)
            if column.shape != (len(self.boxes),):
                raise ValueError(f"{name} must have shape ({len(self.boxes)},), got {column.shape}")
            object.__setattr__(self, name, column)
        unknown = set(self.source.tolist()) - set(Source)
        if unknown:
            raise ValueError(f"source must be one of {', '.join(Source)}, got {', '.join(sorted(unknown))}")

    def only(self, rows: NDArray[np.bool_]) -> "Annotations":
        """The chosen boxes."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})


@dataclass(frozen=True)
class Exported:
    """What has been written: the folder, and the numbers of images, of boxes, and of images that are not labelled as
    a whole, with some box and without any; ``missing``: for each photo that could not be read, where it was and why."""

    folder: Path
    images: int
    boxes: int
    partly_labelled: int
    unlabelled: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Item:
    """An image, its file's name in the export, and the boxes that go there."""

    record: ImageRecord
    file: str
    labels: Annotations


def export(
    folder: str | Path,
    format: str,
    classes: Sequence[str],
    images: Sequence[ImageRecord],
    annotations: Sequence[Annotations],
    *,
    allow_partial: bool = False,
    complete_only: bool = False,
    include_pseudo: bool = False,
    copy_images: bool = False,
    image_url: str | None = None,
    photos: bool = True,
) -> Exported:
    """Write the labels of ``images`` to a new folder, as ``coco``, ``voc``, ``yolo``, ``labelstudio`` or ``cvat``.

    Human boxes and difficult ones are written, rejected ones never, pseudo boxes only with ``include_pseudo``. With
    ``complete_only`` images that are labelled in part or not at all are left out. Images are linked unless
    ``copy_images``, or left out without ``photos``; ``image_url`` is what Label Studio finds them under. A photo that
    cannot be read keeps its labels and is named in ``missing.txt``. The folder appears as a whole or not at all,
    and replaces an earlier export only. Raises `UserError` if there is something else, if there is nothing to write,
    and if YOLO, which cannot say that an image is not labelled as a whole, would have to (see ``allow_partial``).
    """
    if format not in (*_WRITERS, *REVIEW):
        raise unknown_name("export format", format, (*_WRITERS, *REVIEW))
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    if any(a.labels.max(initial=0) >= len(classes) or a.labels.min(initial=0) < 0 for a in annotations):
        raise ValueError(f"labels must be in [0, {len(classes)})")
    classes = clean_all(classes)
    items = _items(images, annotations, include_pseudo)
    items = [item for item in items if item.labels.complete or not complete_only]
    if not items:
        raise UserError(f"nothing to export to {folder}: no image is labelled as a whole; drop --complete-only")
    incomplete = [item for item in items if not item.labels.complete]
    if format == "yolo" and incomplete and not (allow_partial or include_pseudo):
        raise _incomplete(incomplete, len(items))
    with _staged(folder) as stage:
        if format in REVIEW:
            write_review(stage, format, classes, _labelled(items), image_url or local_files(folder))
            image_folder = stage / "images"
        else:
            image_folder = stage / _WRITERS[format](stage, classes, items)
        missing = _place_images(image_folder, items, copy_images, folder) if photos else _not_found(items)
        _write_lines(stage / "missing.txt", missing)
        if incomplete:
            _write_lines(stage / "incomplete.txt", [item.file for item in incomplete])
        _write_mark(stage, format, classes, items)
    boxes = sum(len(item.labels.boxes) for item in items)
    partly = sum(len(item.labels.boxes) > 0 for item in incomplete)
    return Exported(folder, len(items), boxes, partly, len(incomplete) - partly, missing)


def export_queries(
    folder: str | Path,
    format: str,
    classes: Sequence[str],
    images: Sequence[ImageRecord],
    queries: Sequence[Query],
    *,
    copy_images: bool = False,
    image_url: str | None = None,
    version: str = MODEL,
) -> Exported:
    """Write box queries, best first, to a new folder, for people to answer in ``labelstudio`` or ``cvat``.

    Their guesses are there as predictions, of ``version``. Otherwise as :func:`export`.
    """
    if format not in REVIEW:
        raise unknown_name("format for queries", format, REVIEW)
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    if not queries:
        raise UserError(f"nothing to export to {folder}: there is no open question; run or serve the next cycle first")
    classes = clean_all(classes)
    asked = {query.image_id for query in queries}
    items = [item for item in _items(images, [], False) if item.record.id in asked]
    with _staged(folder) as stage:
        shown = sheets([(item.record, item.file) for item in items], queries)
        write_review(stage, format, classes, shown, image_url or local_files(folder), version)
        missing = _place_images(stage / "images", items, copy_images, folder)
        _write_lines(stage / "missing.txt", missing)
        _write_mark(stage, format, classes, items)
    return Exported(folder, len(items), len(queries), 0, 0, missing)


def local_files(folder: Path) -> str:
    """Where Label Studio finds the images of an export, if it serves the folder that the export lies in."""
    return f"/data/local-files/?d={quote(folder.name)}/images/"


REVIEW = ("labelstudio", "cvat")
"""Formats of tools where people label."""


def write_review(
    folder: Path, format: str, classes: Sequence[str], shown: Sequence[ReviewTask], image_url: str, version: str = MODEL
) -> None:
    """The files that such a tool takes in: its tasks or annotations, and its classes."""
    if format == "cvat":
        _write(folder / "annotations.xml", cvat.annotations(shown, classes))
        _write(folder / "labels.json", cvat.labels(classes))
    else:
        tasks = labelstudio.tasks(shown, classes, image_url, version)
        _write(folder / "tasks.json", json.dumps(tasks, ensure_ascii=False))
        _write(folder / "config.xml", labelstudio.config(classes))


def _labelled(items: Sequence[_Item]) -> list[ReviewTask]:
    """Images with their labels, for a tool to show as what people have said."""
    return [
        ReviewTask(number, item.record, item.file, (), _as_queries(item), item.labels.complete)
        for number, item in enumerate(items, 1)
    ]


def _as_queries(item: _Item) -> list[Query]:
    labels = item.labels
    return [Query(item.record.id, box, int(label)) for box, label in zip(labels.boxes, labels.labels, strict=True)]


def _items(images: Sequence[ImageRecord], annotations: Sequence[Annotations], include_pseudo: bool) -> list[_Item]:
    wanted = [Source.HUMAN, Source.DIFFICULT, *([Source.PSEUDO] if include_pseudo else [])]
    known = {a.image_id: a.only(np.isin(a.source, wanted)) for a in annotations}
    if len(known) < len(annotations) or known.keys() - {record.id for record in images}:
        raise ValueError("annotations must be of different images, all of them among those to export")
    return [
        _Item(record, file, known.get(record.id) or _nothing(record.id))
        for record, file in zip(images, sent_as(images), strict=True)
    ]


def sent_as(images: Iterable[ImageRecord]) -> dict[str, int]:
    """The name that each of these images has in an export of all of them, and its id."""
    listed = [(record.id, record.path) for record in images]
    return {file: image_id for file, (image_id, _) in zip(file_names(listed, SUFFIXES), listed, strict=True)}


def _nothing(image_id: int) -> Annotations:
    none = np.zeros(0)
    return Annotations(image_id, none, none, none, none, none, none, complete=False)  # type: ignore[arg-type]


def _incomplete(incomplete: Sequence[_Item], total: int) -> UserError:
    return UserError(
        f"{len(incomplete)} of {total} images are labelled in part or not at all (for example {incomplete[0].file}). "
        "YOLO files cannot say so: every object without a box there would be taught as background. Choose "
        "--complete-only to leave these images out, --include-pseudo to add the model's own boxes, or --allow-partial "
        "to write them all the same and list them in incomplete.txt; the formats coco and voc carry the information"
    )


def _check_free(folder: Path) -> None:
    """Refuse a folder that holds anything which a new export would not replace."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to export to")
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    foreign = sorted(there - _written_before(folder))
    if foreign:
        raise UserError(
            f"{folder} holds files that are not from a rarebox export, such as {foreign[0]}; "
            "choose another folder or move them away"
        )


def _written_before(folder: Path) -> set[str]:
    try:
        mark = from_json((folder / EXPORT_MARK).read_text(encoding="utf-8"))
        return {EXPORT_MARK, *mark["files"]} if isinstance(mark, dict) else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write to, which takes its place at the end, or vanishes on an error.

    Raises `UserError` if files that are not of an earlier export are in ``folder``, also if they came in the meantime.
    """
    _check_free(folder)
    folder = Path(os.path.realpath(folder))  # of a link, what it leads to is replaced
    stage, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{state}") for state in ("new", "old"))
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        yield stage
        _check_free(folder)
        if folder.exists():
            folder.rename(old)
        stage.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); free some space or choose another folder") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(stage, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_new(path, text.encode())


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    """A list, one entry a line; no file where there is none."""
    if lines:
        _write(path, "".join(f"{line}\n" for line in lines))


def _place_images(folder: Path, items: Sequence[_Item], copy: bool, replaced: Path) -> tuple[str, ...]:
    """Link or copy the images; those that lie in the export about to be replaced, or not on this disk, are copied in
    any case. Those that cannot be read come back, each with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for item in items:
        target = folder / item.file
        try:
            with content_of(item.record.path) as content:
                if content is None:
                    source = real(item.record.path)
                    may_link = not copy and not source.is_relative_to(real(replaced))
                    if may_link and source.is_file() and os.access(source, os.R_OK) and _linked(source, target):
                        continue
                    content = _content(source)
                write_new(target, content)
        except UnreadableImage as error:
            missing.append(f"{error.path}: {error.reason}")
        except FileExistsError:
            raise UserError(
                f"{replaced}: the file system there takes {item.file} for the name of another image. Export to "
                "another disk"
            ) from None
    return tuple(missing)


def _content(file: Path) -> bytes:
    """What is in a file. Raises `UnreadableImage`."""
    try:
        return read_bytes(file)
    except OSError as error:
        raise UnreadableImage(file, error.strerror or "it cannot be read") from error


def _not_found(items: Sequence[_Item]) -> tuple[str, ...]:
    """The images of this disk that are not where they were, as `_place_images` tells them."""
    paths = [item.record.path for item in items if not is_url(item.record.path)]
    return tuple(f"{path}: No such file or directory" for path in paths if not os.path.isfile(path))


def _linked(source: Path, target: Path) -> bool:
    try:
        target.symlink_to(source)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # not every system lets everybody make links
        return False
    return True


def _write_mark(stage: Path, format: str, classes: Sequence[str], items: Sequence[_Item]) -> None:
    """``rarebox.json``: what the formats themselves cannot hold, and the list of all files that were written."""
    content = {
        "format": format,
        "classes": list(classes),
        "images": {
            item.file: {
                "id": item.record.id,
                "complete": item.labels.complete,
                "objects": [_provenance(item.labels, row) for row in range(len(item.labels.boxes))],
            }
            for item in items
        },
        "files": sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if not p.is_dir()),
    }
    _write(stage / EXPORT_MARK, json.dumps(content, indent=1, ensure_ascii=False))


def _provenance(labels: Annotations, row: int) -> dict[str, Any]:
    """Of a difficult box the source is a person: difficult is a property of the object."""
    difficult = labels.source[row] == Source.DIFFICULT
    return {
        "source": str(Source.HUMAN if difficult else labels.source[row]),
        "score": short(labels.scores[row]),
        "class_weight": short(labels.class_weight[row]),
        "box_weight": short(labels.box_weight[row]),
        "difficult": int(difficult),
    }


def _coco(stage: Path, classes: Sequence[str], items: Sequence[_Item]) -> str:
    annotations = [
        {
            "image_id": item.record.id,
            "category_id": int(item.labels.labels[row]) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "attributes": _provenance(item.labels, row),
        }
        for item in items
        for row, (x1, y1, x2, y2) in enumerate(item.labels.boxes.astype(np.float64).tolist())
    ]
    content = {
        "info": {"description": "exported by rarebox"},
        "licenses": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes)],
        "images": [
            {
                "id": item.record.id,
                "file_name": f"images/{item.file}",
                "width": item.record.width,
                "height": item.record.height,
                "attributes": {"complete": item.labels.complete},
            }
            for item in items
        ],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
    }
    _write(stage / "annotations.json", json.dumps(content, ensure_ascii=False))
    return "images"


def _voc(stage: Path, classes: Sequence[str], items: Sequence[_Item]) -> str:
    for item in items:
        root = ET.Element("annotation")
        ET.SubElement(root, "folder").text = "JPEGImages"
        ET.SubElement(root, "filename").text = item.file
        ET.SubElement(ET.SubElement(root, "source"), "database").text = "rarebox"
        sides = {"width": item.record.width, "height": item.record.height, "depth": 3}
        _add(ET.SubElement(root, "size"), sides)
        _add(root, {"segmented": 0})
        for row, box in enumerate(to_one_based(item.labels.boxes.astype(np.float64)).tolist()):
            _add_object(root, classes[int(item.labels.labels[row])], box, _provenance(item.labels, row))
        ET.indent(root)
        _write(stage / "Annotations" / f"{Path(item.file).stem}.xml", ET.tostring(root, encoding="unicode") + "\n")
    _write(stage / "ImageSets" / "Main" / "trainval.txt", "".join(f"{Path(item.file).stem}\n" for item in items))
    return "JPEGImages"


def _add_object(root: ET.Element, name: str, box: Sequence[float], provenance: dict[str, Any]) -> None:
    """A VOC object; its provenance goes to an element of its own, which other readers pass over."""
    element = ET.SubElement(root, "object")
    _add(element, {"name": name, "pose": "Unspecified", "truncated": 0, "difficult": provenance.pop("difficult")})
    edges = (int(edge) if edge.is_integer() else edge for edge in box)
    _add(ET.SubElement(element, "bndbox"), dict(zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)))
    _add(ET.SubElement(element, "rarebox"), provenance)


def _add(element: ET.Element, values: dict[str, Any]) -> None:
    for tag, value in values.items():
        ET.SubElement(element, tag).text = str(value)


def _yolo(stage: Path, classes: Sequence[str], items: Sequence[_Item]) -> str:
    """Difficult boxes are written like others, since leaving them out would teach them as background."""
    for item in items:
        sides = np.tile([item.record.width, item.record.height], 2).astype(np.float64)
        x1, y1, x2, y2 = (item.labels.boxes / sides).T
        rows = zip(item.labels.labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, strict=True)
        lines = ("{} {:.9f} {:.9f} {:.9f} {:.9f}\n".format(*row) for row in rows)
        _write(label_file(stage / "images" / item.file), "".join(lines))
    names = yaml.safe_dump({"names": dict(enumerate(classes))}, sort_keys=False, allow_unicode=True)
    remark = "# Name your validation images as 'val:' before you train; these here are the labelled ones.\n"
    _write(stage / "data.yaml", f"{remark}train: images\n{names}")
    return "images"


_WRITERS = {"coco": _coco, "voc": _voc, "yolo": _yolo}
