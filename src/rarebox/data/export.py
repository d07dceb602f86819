"""Export of labels and queries in five formats, with the source of each box and whether each image is fully labelled.

Every export is a new folder: the labels, the images (links or copies), and ``rarebox.json``, which lists the provenance
of every box in the order of the label files.
"""

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import numpy as np
import yaml
from numpy.typing import NDArray

from rarebox.core.files import read_bytes, real, write_new
from rarebox.data import cvat, labelstudio
from rarebox.data.coco import CocoFile
from rarebox.data.contents import Contents
from rarebox.data.images import SUFFIXES, UnreadableImage, content_of
from rarebox.data.listings import EXPORT_MARK
from rarebox.data.naming import clean_all, file_names
from rarebox.data.remote import is_url
from rarebox.data.review import MODEL, ReviewTask, sheets, short
from rarebox.data.staging import files_in, staged, state_of
from rarebox.data.voc import to_one_based
from rarebox.data.yolo import label_file
from rarebox.errors import UserError, unknown_name
from rarebox.types import Floats, ImageRecord, Ints, Query, Source, as_boxes

COLUMNS = ("boxes", "labels", "source", "scores", "class_weight", "box_weight")
"""The columns of :class:`Annotations`, one entry for each box."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """The labels of one image: N boxes with their sources and weights.

    ``boxes`` (N, 4) in pixels of the original image, ``labels`` (N,) in [0, K), ``source`` (N,) strings of `Source`,
    ``scores``, ``class_weight`` and ``box_weight`` (N,) in [0, 1]. ``complete``: a person has labelled every object.
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
        for name, dtype in zip(COLUMNS[1:], (np.int64, np.str_, np.float32, np.float32, np.float32), strict=True):
            column = np.asarray(getattr(self, name), dtype=dtype)
            if column.shape != (len(self.boxes),):
                raise ValueError(f"{name} must have shape ({len(self.boxes)},), got {column.shape}")
            object.__setattr__(self, name, column)
        unknown = set(self.source.tolist()) - set(Source)
        if unknown:
            raise ValueError(f"source must be one of {', '.join(Source)}, got {', '.join(sorted(unknown))}")

    def only(self, rows: NDArray[np.bool_] | Ints) -> "Annotations":
        """The chosen boxes."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})


@dataclass(frozen=True)
class Exported:
    """The folder that was written, and what is in it.

    ``images`` and ``boxes`` are counts. ``partly_labelled`` and ``unlabelled`` count images that are not fully
    labelled, with and without a box. ``missing`` has a line for each photo that cannot be read: its path and why.
    """

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
    project: str = "",
    digests: Mapping[int, str] | None = None,
) -> Exported:
    """Write the labels of ``images`` to a new folder, as ``coco``, ``voc``, ``yolo``, ``labelstudio`` or ``cvat``.

    Human and difficult boxes are written, rejected boxes never, pseudo boxes only with ``include_pseudo``. With
    ``complete_only``, only fully labelled images are written. Images are linked, or copied with ``copy_images``, or
    omitted without ``photos``. ``image_url`` is the address under which Label Studio finds them. ``project`` is the
    session of the store, for `labelstudio` and `cvat`: another store will not trust the numbers of the images.
    ``digests`` are the SHA-256 of the labelled photos by image id; unknown ones are those of the files. A photo
    that cannot be read keeps its labels and is named in ``missing.txt``. The folder appears whole or not at all, and
    replaces nothing but an earlier export. Raises `UserError` if the folder holds anything else, if there is nothing to
    write, and for partially labelled images in YOLO, which has no flag for them (see ``allow_partial``).
    """
    if format not in (*_WRITERS, *REVIEW):
        raise unknown_name("export format", format, (*_WRITERS, *REVIEW))
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    if any(a.labels.max(initial=0) >= len(classes) or a.labels.min(initial=0) < 0 for a in annotations):
        raise ValueError(f"labels must be in [0, {len(classes)})")
    if include_pseudo and format in REVIEW:
        raise UserError(
            f"{format} would show pseudo boxes as human boxes. Omit --include-pseudo, or use --queries to have the "
            "model's boxes reviewed there."
        )
    classes = clean_all(classes)
    items = _items(images, annotations, include_pseudo)
    items = [item for item in items if item.labels.complete or not complete_only]
    if not items:
        raise UserError(f"nothing to export to {folder}: no image is fully labelled. Drop --complete-only.")
    incomplete = [item for item in items if not item.labels.complete]
    if format == "yolo" and incomplete and not (allow_partial or include_pseudo):
        raise _incomplete(incomplete, len(items))
    with staged(folder) as stage:
        if format in REVIEW:
            shown = [replace(sheet, project=project) for sheet in _labelled(items)]
            write_review(stage, format, classes, shown, image_url or local_files(folder))
            image_folder = stage / "images"
        else:
            image_folder = stage / _WRITERS[format](stage, classes, items)
        missing = _place_images(image_folder, items, copy_images, folder) if photos else _not_found(items)
        _write_lines(stage / "missing.txt", missing)
        if incomplete:
            _write_lines(stage / "incomplete.txt", [item.file for item in incomplete])
        _write_mark(stage, format, classes, items, _digests(items, digests or {}, image_folder))
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
    project: str = "",
) -> Exported:
    """Write box queries, best first, to a new folder, for people to answer in ``labelstudio`` or ``cvat``.

    The guesses become predictions of the model ``version``. Everything else is as in :func:`export`.
    """
    if format not in REVIEW:
        raise unknown_name("format for queries", format, REVIEW)
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    if not queries:
        raise UserError(f"nothing to export to {folder}: there is no open question. Run or serve the next cycle first.")
    classes = clean_all(classes)
    asked = {query.image_id for query in queries}
    items = [item for item in _items(images, [], False) if item.record.id in asked]
    with staged(folder) as stage:
        shown = sheets([(item.record, item.file) for item in items], queries)
        shown = [replace(sheet, project=project) for sheet in shown]
        write_review(stage, format, classes, shown, image_url or local_files(folder), version)
        missing = _place_images(stage / "images", items, copy_images, folder)
        _write_lines(stage / "missing.txt", missing)
        _write_mark(stage, format, classes, items, {})
    return Exported(folder, len(items), len(queries), 0, 0, missing)


def local_files(folder: Path) -> str:
    """The address of the images in Label Studio, if it serves the parent folder of the export."""
    return f"/data/local-files/?d={quote(folder.name)}/images/"


REVIEW = ("labelstudio", "cvat")
"""The formats of labelling tools."""


def write_review(
    folder: Path, format: str, classes: Sequence[str], shown: Sequence[ReviewTask], image_url: str, version: str = MODEL
) -> None:
    """Write the files to import into a labelling tool: its tasks or annotations, and its classes."""
    if format == "cvat":
        _write(folder / "annotations.xml", cvat.annotations(shown, classes))
        _write(folder / "labels.json", cvat.labels(classes))
    else:
        tasks = labelstudio.tasks(shown, classes, image_url, version)
        _write(folder / "tasks.json", json.dumps(tasks, ensure_ascii=False))
        _write(folder / "config.xml", labelstudio.config(classes))


def _labelled(items: Sequence[_Item]) -> list[ReviewTask]:
    """Images with their labels, for a tool to show as human annotations."""
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
        raise ValueError("annotations must be of different images, all of them in the export")
    return [
        _Item(record, file, known.get(record.id) or _nothing(record.id))
        for record, file in zip(images, sent_as(images), strict=True)
    ]


def sent_as(images: Iterable[ImageRecord]) -> dict[str, int]:
    """File name in an export of all these images -> image id."""
    listed = [(record.id, record.path) for record in images]
    return {file: image_id for file, (image_id, _) in zip(file_names(listed, SUFFIXES), listed, strict=True)}


def _nothing(image_id: int) -> Annotations:
    none = np.zeros(0)
    return Annotations(image_id, none, none, none, none, none, none, complete=False)  # type: ignore[arg-type]


def _incomplete(incomplete: Sequence[_Item], total: int) -> UserError:
    return UserError(
        f"{len(incomplete)} of {total} images are partially labelled or unlabelled (for example {incomplete[0].file}). "
        "YOLO has no such flag, so objects without a box would train as background. Choose --complete-only to skip "
        "these images, --include-pseudo to add the model's own boxes, or --allow-partial to write them anyway and list "
        "them in incomplete.txt. The formats coco and voc keep the information."
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_new(path, text.encode())


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write one entry a line; write no file for an empty list."""
    if lines:
        _write(path, "".join(f"{line}\n" for line in lines))


def _place_images(folder: Path, items: Sequence[_Item], copy: bool, replaced: Path) -> tuple[str, ...]:
    """Link or copy the images, and return a line for each that cannot be read.

    Images in the export that is about to be replaced, and images behind a URL, are always copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
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
                f"{replaced}: the file system there does not distinguish {item.file} from the name of another image. "
                "Export to another disk."
            ) from None
    return tuple(missing)


def _content(file: Path) -> bytes:
    """The content of a file. Raises `UnreadableImage`."""
    try:
        return read_bytes(file)
    except OSError as error:
        raise UnreadableImage(file, error.strerror or "it cannot be read") from error


def _not_found(items: Sequence[_Item]) -> tuple[str, ...]:
    """A line for each missing image of this disk, as `_place_images` returns them."""
    paths = [item.record.path for item in items if not is_url(item.record.path)]
    return tuple(f"{path}: No such file or directory" for path in paths if not os.path.isfile(path))


def _linked(source: Path, target: Path) -> bool:
    try:
        target.symlink_to(source)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # some systems do not allow links
        return False
    return True


def _digests(items: Sequence[_Item], known: Mapping[int, str], images: Path) -> dict[str, str]:
    """The SHA-256 of the labelled photos, by file name: those known, else those of the files in ``images``."""
    contents, unknown = Contents(), [item.file for item in items if item.record.id not in known]
    contents.read([str(images / file) for file in unknown])
    found = {file: content for file in unknown if (content := contents.of(images / file))}
    return {item.file: known[item.record.id] for item in items if item.record.id in known} | found


def _write_mark(
    stage: Path, format: str, classes: Sequence[str], items: Sequence[_Item], digests: Mapping[str, str]
) -> None:
    """Write ``rarebox.json``: what the formats have no field for, and all files with their states."""
    content = {
        "format": format,
        "classes": list(classes),
        "images": {
            item.file: {
                "id": item.record.id,
                "complete": item.labels.complete,
                **({"photo": digests[item.file]} if item.file in digests else {}),
                "objects": [_provenance(item.labels, row) for row in range(len(item.labels.boxes))],
                **({"pseudo": lines} if (lines := _pseudo_lines(item)) else {}),
            }
            for item in items
        },
        "files": {file: state_of(stage / file) for file in files_in(stage)},
    }
    _write(stage / EXPORT_MARK, json.dumps(content, indent=1))


class _Provenance(TypedDict):
    """Where a box comes from, and its weights."""

    source: str
    score: float | None
    class_weight: float | None
    box_weight: float | None
    difficult: int


def _provenance(labels: Annotations, row: int) -> _Provenance:
    """The provenance of a box. A difficult box comes from a person: difficult is a property of the object."""
    difficult = labels.source[row] == Source.DIFFICULT
    return {
        "source": str(Source.HUMAN if difficult else labels.source[row]),
        "score": short(labels.scores[row]),
        "class_weight": short(labels.class_weight[row]),
        "box_weight": short(labels.box_weight[row]),
        "difficult": int(difficult),
    }


def _coco(stage: Path, classes: Sequence[str], items: Sequence[_Item]) -> str:
    boxes = (
        (item, row, *box) for item in items for row, box in enumerate(item.labels.boxes.astype(np.float64).tolist())
    )
    content: CocoFile = {
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
        "annotations": [
            {
                "id": number,
                "image_id": item.record.id,
                "category_id": int(item.labels.labels[row]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "attributes": _provenance(item.labels, row),
            }
            for number, (item, row, x1, y1, x2, y2) in enumerate(boxes, 1)
        ],
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


def _add_object(root: ET.Element, name: str, box: Sequence[float], provenance: _Provenance) -> None:
    """Add a VOC object. Its provenance goes to the element ``rarebox``, which other readers ignore."""
    element = ET.SubElement(root, "object")
    _add(element, {"name": name, "pose": "Unspecified", "truncated": 0, "difficult": provenance["difficult"]})
    edges = (int(edge) if edge.is_integer() else edge for edge in box)
    _add(ET.SubElement(element, "bndbox"), dict(zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)))
    beside = {tag: value for tag, value in provenance.items() if tag != "difficult"}
    _add(ET.SubElement(element, "rarebox"), beside)


def _add(element: ET.Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        ET.SubElement(element, tag).text = str(value)


def _yolo(stage: Path, classes: Sequence[str], items: Sequence[_Item]) -> str:
    """Write the label files and data.yaml. Difficult boxes are included, or they would train as background."""
    for item in items:
        _write(label_file(stage / "images" / item.file), "".join(f"{line}\n" for line in _yolo_lines(item)))
    names = yaml.safe_dump({"names": dict(enumerate(classes))}, sort_keys=False, allow_unicode=True)
    remark = "# These are the labelled images. Name your validation images as 'val:' before you train.\n"
    _write(stage / "data.yaml", f"{remark}train: images\n{names}")
    return "images"


def _yolo_lines(item: _Item) -> list[str]:
    """The line of each box: class number, centre and sides in fractions of the image's sides."""
    sides = np.tile([item.record.width, item.record.height], 2).astype(np.float64)
    x1, y1, x2, y2 = (item.labels.boxes / sides).T
    rows = zip(item.labels.labels, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, strict=True)
    return ["{} {:.9f} {:.9f} {:.9f} {:.9f}".format(*row) for row in rows]


def _pseudo_lines(item: _Item) -> list[str]:
    """The lines of YOLO for pseudo labels, by which a reader knows them in every format: YOLO has no field for the
    source, and other tools drop that of COCO and VOC."""
    return [line for line, source in zip(_yolo_lines(item), item.labels.source, strict=True) if source == Source.PSEUDO]


_WRITERS = {"coco": _coco, "voc": _voc, "yolo": _yolo}
