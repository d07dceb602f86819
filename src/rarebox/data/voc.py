"""PASCAL VOC: one XML for each image in ``Annotations/``, images in ``JPEGImages/``, lists in ``ImageSets/Main/``."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from shutil import copyfileobj
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from rarebox.data import EXPORT_MARK, ListedBox, ListedImage, Listing, Problem, Reader
from rarebox.data.images import SUFFIXES
from rarebox.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

HOST = "http://host.robots.ox.ac.uk/pascal/VOC"
_TRAIN_2007, _TEST_2007 = "voc2007/VOCtrainval_06-Nov-2007.tar", "voc2007/VOCtest_06-Nov-2007.tar"
_TRAIN_2012 = "voc2012/VOCtrainval_11-May-2012.tar"
ARCHIVES = {
    "voc2007": (_TRAIN_2007, _TEST_2007),
    "voc2012": (_TRAIN_2012,),
    "voc0712": (_TRAIN_2007, _TEST_2007, _TRAIN_2012),
}
MD5 = {
    _TRAIN_2007: "c52e279531787c972589f7e41ab4ae64",
    _TEST_2007: "b6e924de25625d8de591ea690078ad9f",
    _TRAIN_2012: "6cd6e144f989b92b3379bac3b3de84fd",
}

# VOC counts pixels from 1 and its xmax, ymax are the last pixel *inside* the box. The left edge of pixel x is x - 1 in
# continuous 0-based coordinates and its right edge is x, hence only the first corner moves. Nothing else in rarebox
# knows of this.
_FIRST_PIXEL = np.array([1.0, 1.0, 0.0, 0.0])


def to_zero_based(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 4) xmin, ymin, xmax, ymax as VOC writes them -> (..., 4) x1, y1, x2, y2 in 0-based pixels."""
    return boxes - _FIRST_PIXEL


def to_one_based(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `to_zero_based`."""
    return boxes + _FIRST_PIXEL


def find(path: Path) -> Reader | None:
    """Recognises a folder with VOCdevkit/, one with VOC2007 and its like, and Annotations/ beside JPEGImages/."""
    for folder in (path, path / "VOCdevkit"):
        years = sorted(p for p in folder.glob("VOC*") if re.fullmatch(r"VOC\d{4}", p.name) and _is_devkit(p))
        if years:
            return partial(read, years)
    return partial(read, [path]) if _is_devkit(path) else None


def read(years: Sequence[Path]) -> tuple[Listing, Listing | None]:
    """Trainval of all years, and as test that of the first year that has a labelled one (of 2007 and 2012: 2007).

    Without lists of images, all of them are training data. Raises `UserError` if no label file can be read.
    """
    problems: list[Problem] = []
    train = [xml for year in years for xml in _listed(year, "trainval", "train")]
    test = next((xmls for year in years if (xmls := _test(year, problems))), [])
    if not train and not test:
        train = [xml for year in years for xml in _unlisted(year)]
    return _listing(years[0], train, problems), _listing(years[0], test, []) if test else None


def _is_devkit(path: Path) -> bool:
    return (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir()


def _listed(year: Path, *names: str) -> list[Path]:
    """The label files that the first of these image sets asks for, whether they exist or not."""
    lists = (year / "ImageSets" / "Main" / f"{name}.txt" for name in names)
    chosen = next((path for path in lists if path.is_file()), None)
    if chosen is None:
        return []
    lines = chosen.read_text(encoding="utf-8", errors="replace").splitlines()
    return [year / "Annotations" / f"{line.strip()}.xml" for line in lines if line.strip()]


def _test(year: Path, problems: list[Problem]) -> list[Path]:
    """The label files of a year's test set; those of its val set, if that is not part of the training data."""
    xmls = _listed(year, "test") or (_listed(year, "val") if not _listed(year, "trainval") else [])
    if xmls and not any(xml.is_file() for xml in xmls):
        problems.append(Problem("split not used", str(year), f"no label file of its {len(xmls)} test images is there"))
        return []
    return xmls


def _unlisted(year: Path) -> list[Path]:
    """The label files of all images, and those without an image."""
    images = {p.stem for p in (year / "JPEGImages").iterdir() if p.suffix.lower() in SUFFIXES}
    labels = {p.stem for p in (year / "Annotations").glob("*.xml")}
    return [year / "Annotations" / f"{stem}.xml" for stem in images | labels]


def _listing(source: Path, xmls: Sequence[Path], problems: list[Problem]) -> Listing:
    images: list[ListedImage] = []
    broken: list[UserError] = []
    for xml in sorted(set(xmls)):
        try:
            images.append(_image(xml, problems))
        except UserError as error:
            broken.append(error)
            problems.append(Problem("unreadable annotation", str(xml), f"{error}; its image is left out"))
    if broken and len(broken) == sum(xml.is_file() for xml in set(xmls)):
        raise UserError(f"none of the {len(broken)} label files can be read: {broken[0]}")
    images.sort(key=lambda image: image.path)
    names = {box.name for image in images for box in image.boxes}
    known = exported_classes(source)
    return Listing(source, [*known, *sorted(names - set(known))], images, problems)


def exported_classes(folder: Path) -> list[str]:
    """The classes in the order of the run that rarebox exported this folder from; none for any other folder."""
    try:
        classes = json.loads((folder / EXPORT_MARK).read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in classes]


def _image(xml: Path, problems: list[Problem]) -> ListedImage:
    """One label file; without it the image counts as showing no object. Raises `UserError` if it is broken."""
    if not xml.is_file():
        what = "it has no label file and counts as showing no object"
        problems.append(Problem("image without annotation", str(xml), what))
        return ListedImage(_picture_file(xml, None))
    root = _parse(xml)
    boxes = [box for index, item in enumerate(root.findall("object")) if (box := _box(xml, index, item, problems))]
    return ListedImage(_picture_file(xml, root.findtext("filename")), boxes, size=_size(root))


def _parse(xml: Path) -> ET.Element:
    """The root of a label file. Raises `UserError`, naming the line of a syntax error."""
    content = xml.read_bytes()
    plain = content.replace(b"\0", b"").upper()  # so that UTF-16 does not hide it
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        raise UserError(f"{xml}: it declares a DOCTYPE or entities, which can exhaust the memory; remove these lines")
    try:
        return ET.fromstring(content)
    except ET.ParseError as error:
        raise UserError(f"{xml}, line {error.position[0]}: this is not valid XML ({error}); repair the file") from None
    except (LookupError, ValueError) as error:
        raise UserError(f"{xml}: its encoding is not known ({error}); save it as UTF-8") from None


def _picture_file(xml: Path, name: str | None) -> Path:
    """The image that the label file names, else the one that is named like it."""
    folder = xml.parent.parent / "JPEGImages"
    if name and (folder / Path(name.strip()).name).is_file():
        return folder / Path(name.strip()).name
    jpeg = folder / f"{xml.stem}.jpg"
    others = (folder / f"{xml.stem}{suffix}" for suffix in sorted(SUFFIXES))
    return jpeg if jpeg.is_file() else next((path for path in others if path.is_file()), jpeg)


def _size(root: ET.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _box(xml: Path, index: int, item: ET.Element, problems: list[Problem]) -> ListedBox | None:
    where, name = f"{xml}: object {index + 1}", (item.findtext("name") or "").strip()
    if not name:
        problems.append(Problem("unknown category", where, "the object has no name; it is dropped"))
        return None
    try:
        written = [float(item.findtext(f"bndbox/{edge}") or "nothing") for edge in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        problems.append(Problem("box dropped", where, "its bndbox does not hold xmin, ymin, xmax and ymax as numbers"))
        return None
    x1, y1, x2, y2 = to_zero_based(np.array(written)).tolist()
    difficult = (item.findtext("difficult") or "").strip().lower() in ("1", "true")
    return ListedBox((x1, y1, x2, y2), name, difficult, where)


def wants_download(path: Path) -> bool:
    """Whether the path is named like a key of ``ARCHIVES`` and its data are missing or not all unpacked yet."""
    if path.name not in ARCHIVES or path.is_file():
        return False
    if not path.exists() or not any(path.iterdir()):
        return True
    files = [path / Path(archive).name for archive in ARCHIVES[path.name]]
    begun = any(file.exists() or _part(file).exists() for file in files)
    return begun and not all(_mark(file).exists() for file in files)


def download(root: Path) -> None:
    """Fetch and unpack the archives of the data set that ``root`` is named after; what is there already is kept.

    An interrupted download goes on where it stopped. Raises `UserError` that says which files to put where.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    files = {root / Path(archive).name: archive for archive in ARCHIVES[root.name]}
    with Progress(*columns) as progress:
        for file, archive in files.items():
            if _mark(file).exists():
                continue
            try:
                _fetch(file, archive, progress)
            except (OSError, HTTPException) as error:
                raise _by_hand(root, files.values(), error) from None
            _unpack(file, root)


def _part(file: Path) -> Path:
    return file.with_name(file.name + ".part")


def _mark(file: Path) -> Path:
    """Written once an archive is unpacked as a whole."""
    return file.with_name(file.name + ".unpacked")


def _fetch(file: Path, archive: str, progress: Progress) -> None:
    """Leave the archive at ``file``, whole and as published. Raises `UserError`, ``OSError`` or ``HTTPException``."""
    mine = not file.exists()
    if mine:
        _stream(f"{HOST}/{archive}", _part(file), progress)
    found = _md5(_part(file) if mine else file)
    if found != MD5[archive]:
        if mine:
            _part(file).unlink()
        raise UserError(f"{file} is not the published file (md5 {found}, not {MD5[archive]}); delete it and try again")
    if mine:
        _part(file).rename(file)


def _stream(url: str, part: Path, progress: Progress) -> None:
    """Append what is still missing of a file to ``part``."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=60)
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is missing
            return
        raise
    with response:
        have = have if response.status == HTTPStatus.PARTIAL_CONTENT else 0  # not every server can go on in the middle
        total = have + int(response.headers.get("Content-Length", 0))
        task = progress.add_task(part.stem, total=total or None, completed=have)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("ab" if have else "wb") as out:
                while block := response.read(1 << 18):
                    out.write(block)
                    progress.advance(task, len(block))
        except OSError as error:
            if error.errno == errno.ENOSPC:  # what is there of it would keep the disk full
                part.unlink()
            raise
    if part.stat().st_size < total:
        raise ConnectionError("the connection was closed too early")


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(file: Path, root: Path) -> None:
    inside = os.path.realpath(root)
    try:
        with tarfile.open(file) as archive:  # file by file: Python 3.11.3 and before know no filter="data"
            for member in archive:
                target = Path(os.path.realpath(root / member.name))
                if not target.is_relative_to(inside):
                    raise UserError(
                        f"{file} cannot be unpacked: {member.name} would lie outside of {root}. If a folder in there "
                        f"is a link to another place, make {root} itself that link"
                    )
                if content := archive.extractfile(member) if member.isfile() else None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as written:
                        copyfileobj(content, written)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be unpacked ({error}); delete it and try again") from None
    except OSError as error:
        raise UserError(f"{file} cannot be unpacked to {root} ({error}); mend that and try again") from None
    _mark(file).touch()


def _by_hand(root: Path, archives: Iterable[str], error: Exception) -> UserError:
    files = "\n".join(f"  {HOST}/{archive}" for archive in archives)
    return UserError(
        f"PASCAL VOC cannot be downloaded to {root} ({error}). Try again to go on where it stopped, or get these files "
        f"elsewhere and put them into the folder {root.absolute()}, as they are, then start again:\n{files}"
    )
