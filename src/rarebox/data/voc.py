"""PASCAL VOC: one XML for each image in ``Annotations/``, images in ``JPEGImages/``, lists in ``ImageSets/Main/``."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from shutil import copyfileobj
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from rarebox.data import ListedBox, ListedImage, Listing, Problem, Reader, export_mark, exported_complete
from rarebox.data.disk import Disk, place_key, slashes
from rarebox.data.images import files_below, image_files
from rarebox.data.markup import from_xml
from rarebox.errors import UserError
from rarebox.files import read_bytes
from rarebox.text import read_text

if TYPE_CHECKING:
    from rich.progress import Progress

_LABELS, _PICTURES = "Annotations", "JPEGImages"

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


def read(folders: Sequence[Path]) -> tuple[Listing, Listing | None]:
    """Trainval of all years, and as test that of the first year that has a labelled one (of 2007 and 2012: 2007).

    Without lists of images, all of them are training data. Raises `UserError` if no label file can be read.
    """
    problems: list[Problem] = []
    years = [_Year(folder) for folder in folders]
    train = [(year, xml) for year in years for xml in year.listed("trainval", "train")]
    test = next((found for year in years if (found := [(year, xml) for xml in _test(year, problems)])), [])
    if not train and not test:
        train = [(year, xml) for year in years for xml in year.unlisted()]
    return _listing(folders[0], train, problems), _listing(folders[0], test, []) if test else None


def _is_devkit(path: Path) -> bool:
    disk = Disk()
    labels, pictures = (disk.find(path / name) for name in (_LABELS, _PICTURES))
    return labels is not None and labels.is_dir() and (pictures is not None or any(labels.rglob("*.xml")))


def _told_apart_by_more_than_capitals(files: Sequence[Path]) -> bool:
    """Whether no two files have names that some systems take for one."""
    stems = {file.with_suffix("") for file in files}
    return len({place_key(stem) for stem in stems}) == len(stems)


class _Year:
    """A folder with label files and photos, paired by name: that of the path below the two folders without its suffix,
    or the last part of it alone where only one photo and one label file share that. Capitals do not count."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, Disk()
        self.labels, self.pictures = (self.disk.find(folder / n) or folder / n for n in (_LABELS, _PICTURES))
        self.complete = exported_complete(export_mark(folder))
        self._pictures: dict[str, list[Path]] = {}
        xmls = files_below(self.labels, {".xml"})
        pictures = image_files(self.pictures) if self.pictures.is_dir() else []
        self._fold = all(_told_apart_by_more_than_capitals(files) for files in (xmls, pictures))
        self._labels = {self._key(xml): xml for xml in xmls}
        for picture in pictures:
            self._pictures.setdefault(self._key(picture), []).append(picture)
        self._pair_by_last_part()

    def _key(self, file: Path) -> str:
        top = self.pictures if file.is_relative_to(self.pictures) else self.labels
        return self._place(file.relative_to(top).with_suffix(""))

    def _place(self, path: str | Path) -> str:
        return place_key(path) if self._fold else Path(path).as_posix()

    def _pair_by_last_part(self) -> None:
        """Call photos whose own folder has no label file as the label file of their name in another folder."""
        lonely, others = (
            _by_last_part(one.keys() - two.keys())
            for one, two in ((self._labels, self._pictures), (self._pictures, self._labels))
        )
        for name, labels in lonely.items():
            if len(labels) == 1 and len(pictures := others.get(name, [])) == 1:
                self._pictures[labels[0]] = self._pictures.pop(pictures[0])

    def listed(self, *names: str) -> list[Path]:
        """The label files that the first of these image sets asks for, whether they exist or not."""
        lists = (self.disk.find(self.folder / "ImageSets" / "Main" / f"{name}.txt") for name in names)
        chosen = next(filter(None, lists), None)
        lines = [slashes(line.strip()).lstrip("/") for line in read_text(chosen).splitlines()] if chosen else []
        return [self._labels.get(self._place(line), self.labels / f"{line}.xml") for line in lines if line]

    def unlisted(self) -> list[Path]:
        """The label files of all images, and those without an image."""
        without = (self.labels / f"{_stem(key, files[0])}.xml" for key, files in self._pictures.items() if key not in self._labels)  # fmt: skip  # noqa: E501
        return [*self._labels.values(), *without]

    def picture_of(self, xml: Path, name: str | None, problems: list[Problem]) -> Path:
        """The photo of a label file: the one that is called like it, else the one that it names.

        Where ``<filename>`` names another photo that is there too, files were renamed and it was not.
        """
        own = self._pictures.get(self._key(xml), [])
        said = slashes(name.strip()).rsplit("/", 1)[-1] if name else ""
        if own:
            named = [picture for picture in own if place_key(picture.name) == place_key(said)]
            if not named and self._photos_called(said):
                what = f"its <filename> is {said}, another photo; its boxes count for {own[0].name}, by its own name"
                problems.append(Problem("contradicting filename", str(xml), what))
            return min(named or own, key=lambda picture: (picture.suffix.lower() != ".jpg", picture))
        named = self._photos_called(said)
        if len(named) == 1 and self._key(named[0]) not in self._labels:
            return named[0]
        suffix = Path(said).suffix if Path(said).stem == xml.stem else ".jpg"
        return self.pictures / xml.relative_to(self.labels).with_suffix(suffix or ".jpg")

    def _photos_called(self, name: str) -> list[Path]:
        return self._by_name.get(place_key(name), [])

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for picture in (picture for pictures in self._pictures.values() for picture in pictures):
            found.setdefault(place_key(picture.name), []).append(picture)
        return found


def _by_last_part(keys: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(key.rsplit("/", 1)[-1], []).append(key)
    return found


def _stem(key: str, picture: Path) -> str:
    """The path of a photo below its folder without the suffix, as it is written."""
    return Path(*picture.parts[-len(Path(key).parts) :]).with_suffix("").as_posix()


def _test(year: _Year, problems: list[Problem]) -> list[Path]:
    """The label files of a year's test set; those of its val set, if that is not part of the training data."""
    xmls = year.listed("test") or (year.listed("val") if not year.listed("trainval") else [])
    if xmls and not any(os.path.isfile(xml) for xml in xmls):
        what = f"no label file of its {len(xmls)} test images is there"
        problems.append(Problem("split not used", str(year.folder), what))
        return []
    return xmls


def _listing(source: Path, files: Sequence[tuple[_Year, Path]], problems: list[Problem]) -> Listing:
    images: list[ListedImage] = []
    broken: list[UserError] = []
    of_year = {xml: year for year, xml in files}
    labelled: set[Path | str] = set()
    for xml in sorted(of_year, key=lambda xml: (not xml.is_file(), xml)):
        if not xml.is_file() and of_year[xml].picture_of(xml, None, []) in labelled:
            continue  # a label file of another name has it as its <filename>
        try:
            images.append(_image(xml, of_year[xml], problems))
            labelled.add(images[-1].path)
        except UserError as error:
            broken.append(error)
            problems.append(Problem("unreadable annotation", str(xml), f"{error}; its image is left out"))
    if broken and len(broken) == sum(os.path.isfile(xml) for xml in of_year):
        raise UserError(f"none of the {len(broken)} label files can be read: {broken[0]}")
    images.sort(key=lambda image: image.path)
    names = {box.name for image in images for box in image.boxes}
    known = exported_classes(source)
    return Listing(source, [*known, *sorted(names - set(known))], images, problems)


def exported_classes(folder: Path) -> list[str]:
    """The classes in the order of the run that rarebox exported this folder from; none for any other folder."""
    classes = export_mark(folder).get("classes")
    return [str(name) for name in classes] if isinstance(classes, list) else []


def _image(xml: Path, year: _Year, problems: list[Problem]) -> ListedImage:
    """One label file; without it the image counts as showing no object. Raises `UserError` if it is broken."""
    if not os.path.isfile(xml):
        what = "it has no label file and counts as showing no object"
        problems.append(Problem("image without annotation", str(xml), what))
        return ListedImage(year.picture_of(xml, None, problems), labelled=False)
    root = _parse(xml)
    items = root.findall("object")
    boxes = [box for index, item in enumerate(items) if (box := _box(xml, index, item, problems))]
    picture = year.picture_of(xml, root.findtext("filename"), problems)
    complete, lost = year.complete.get(picture.name), len(boxes) < len(items)
    return ListedImage(picture, boxes, size=_size(root), complete=complete, lost=lost)


def _parse(xml: Path) -> ET.Element:
    """The root of a label file. Raises `UserError`, naming the line of a syntax error."""
    try:
        return from_xml(read_bytes(xml))
    except ET.ParseError as error:
        raise UserError(f"{xml}, line {error.position[0]}: this is not valid XML ({error}); repair the file") from None
    except ValueError as error:
        raise UserError(f"{xml}: {error}") from None


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
    edges = [(item.findtext(f"bndbox/{edge}") or "").strip() for edge in ("xmin", "ymin", "xmax", "ymax")]
    try:
        written = [float(edge) for edge in edges]
    except ValueError:
        comma = ", with a point and not a comma before the decimals" if "," in "".join(edges) else ""
        what = f"its bndbox does not hold xmin, ymin, xmax and ymax as numbers{comma}"
        problems.append(Problem("box dropped", where, what))
        return None
    x1, y1, x2, y2 = to_zero_based(np.array(written)).tolist()
    difficult = (item.findtext("difficult") or "").strip().lower() in ("1", "true")
    return ListedBox((x1, y1, x2, y2), name, difficult, where, (item.findtext("rarebox/source") or "").strip())


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
