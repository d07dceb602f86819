"""PASCAL VOC: one XML for each image in ``Annotations/``, images in ``JPEGImages/``, lists in ``ImageSets/Main/``."""

import errno
import hashlib
import os
import re
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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

from rarebox.core.files import read_bytes
from rarebox.core.text import lines_of, read_text
from rarebox.data.disk import Disk, place_key, searchable, slashes
from rarebox.data.exported import Exported
from rarebox.data.images import SUFFIXES, files_below, image_files
from rarebox.data.listings import (
    NO_LABEL_FILE,
    ListedBox,
    ListedImage,
    Listing,
    Problem,
    Reader,
    listed_size,
    upright,
    written_by_rarebox,
)
from rarebox.data.markup import from_xml
from rarebox.data.naming import ByName
from rarebox.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

_BOX = ("xmin", "ymin", "xmax", "ymax")
_EDGES = frozenset({"xmin", "x1", "xtl", "left", "x"})
_OBJECT = re.compile("object|box|polygon")
_LABELS, _PICTURES = "Annotations", "JPEGImages"

HOST = "http://host.robots.ox.ac.uk/pascal/VOC"
_TRAIN_2007, _TEST_2007 = "voc2007/VOCtrainval_06-Nov-2007.tar", "voc2007/VOCtest_06-Nov-2007.tar"
_TRAIN_2012 = "voc2012/VOCtrainval_11-May-2012.tar"
ARCHIVES: dict[str, tuple[str, ...]] = {
    "voc2007": (_TRAIN_2007, _TEST_2007),
    "voc2012": (_TRAIN_2012,),
    "voc0712": (_TRAIN_2007, _TEST_2007, _TRAIN_2012),
}
MD5 = {
    _TRAIN_2007: "c52e279531787c972589f7e41ab4ae64",
    _TEST_2007: "b6e924de25625d8de591ea690078ad9f",
    _TRAIN_2012: "6cd6e144f989b92b3379bac3b3de84fd",
}

# VOC counts pixels from 1, and its xmax, ymax are the last pixel *inside* the box. The left edge of pixel x is x - 1 in
# continuous 0-based coordinates and its right edge is x, so only the first corner moves. All other code is 0-based.
_FIRST_PIXEL = np.array([1.0, 1.0, 0.0, 0.0])


def to_zero_based(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 4) xmin, ymin, xmax, ymax as VOC writes them -> (..., 4) x1, y1, x2, y2 in 0-based pixels."""
    return boxes - _FIRST_PIXEL


def to_one_based(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `to_zero_based`."""
    return boxes + _FIRST_PIXEL


def find(path: Path) -> Reader | None:
    """Recognise a folder with VOCdevkit/, with VOC2007 and other years, or with Annotations/ beside JPEGImages/."""
    for folder in (path, path / "VOCdevkit"):
        years = sorted(p for p in folder.glob("VOC*") if re.fullmatch(r"VOC\d{4}", p.name) and _is_devkit(p))
        if years:
            return partial(read, years)
    return partial(read, [path]) if _is_devkit(path) and Disk().find(path / _PICTURES) else None


def find_alone(path: Path) -> Reader | None:
    """Recognise a folder with label files in Annotations/ without JPEGImages/; the photos are in images/ or elsewhere.

    Other formats come first, since ``annotations`` is also the name of folders that are not read.
    """
    return partial(read, [path]) if _is_devkit(path) else None


def find_flat(path: Path) -> Reader | None:
    """Recognise a folder with a VOC label file beside an image of the same name, as labelImg writes them."""
    if not os.path.isdir(path):
        return None
    beside = (xml for xml in files_below(path, {".xml"}) if _has_image(xml) and b"<annotation" in searchable(xml))
    return partial(read, [path], flat=True) if next(beside, None) else None


def _has_image(xml: Path) -> bool:
    return any(os.path.exists(xml.with_suffix(suffix)) for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES)))


def read(folders: Sequence[Path], *, flat: bool = False) -> tuple[Listing, Listing | None]:
    """Trainval of all years, and the labelled test set of the first year that has one (2007 for VOC 2007 and 2012).

    Without lists in ImageSets/Main, all images are training data. ``flat``: the label files are beside the images.
    Raises `UserError` if no label file can be read.
    """
    years = [_Year(folder, flat) for folder in folders]
    problems = [problem for year in years for problem in written_by_rarebox(year.pictures)]
    train = [(year, xml) for year in years for xml in year.listed("trainval", "train")]
    tests = ([(year, xml) for xml in _test(year, problems)] for year in years)
    test = next(filter(None, tests), list[tuple[_Year, Path]]())
    if train or test:
        problems += [problem for year in years for problem in year.unused({xml for _, xml in (*train, *test)})]
    else:
        train = [(year, xml) for year in years for xml in year.unlisted()]
    listing = _listing(folders[0], train, problems)
    listing.files.update(xml for year in years for xml in year.files)
    return listing, _listing(folders[0], test, []) if test else None


def unread(folder: Path, read: Collection[str]) -> Iterator[Path]:
    """The label files below a folder, except those read, which are given by their real paths."""
    found = (xml for xml in files_below(folder, {".xml"}) if os.path.realpath(xml) not in read)
    return (xml for xml in found if b"<annotation" in searchable(xml))


def _is_devkit(path: Path) -> bool:
    disk = Disk()
    labels, pictures = (disk.find(path / name) for name in (_LABELS, _PICTURES))
    return labels is not None and os.path.isdir(labels) and (pictures is not None or any(labels.rglob("*.xml")))


def _told_apart_by_more_than_capitals(files: Sequence[Path]) -> bool:
    """Whether no two files have names that some systems treat as the same."""
    stems = {file.with_suffix("") for file in files}
    return len({place_key(stem) for stem in stems}) == len(stems)


class _Year:
    """A folder with label files and photos, paired by name.

    The name is the path below the two folders without its suffix, ignoring case, or else what
    :meth:`rarebox.data.naming.ByName.match` finds.
    """

    def __init__(self, folder: Path, flat: bool) -> None:
        self.folder, self.disk = folder, Disk()
        places = [folder, folder] if flat else [folder / _LABELS, folder / _PICTURES]
        self.labels, self.pictures = (self.disk.find(place) or place for place in places)
        if not os.path.isdir(self.pictures) and (other := self.disk.find(folder / "images")):
            self.pictures = other
        self.export = Exported.of(folder)
        self.unlabelled = False if self.export else None  # each image of an export had a label file
        self._labels: dict[str, list[Path]] = {}
        self._pictures: dict[str, list[Path]] = {}
        self._by_stem, self._by_file = ByName[Path](), ByName[Path]()
        self.files = xmls = files_below(self.labels, {".xml"})
        pictures = image_files(self.pictures) if os.path.isdir(self.pictures) else []
        self._fold = all(_told_apart_by_more_than_capitals(files) for files in (xmls, pictures))
        for xml in xmls:
            self._labels.setdefault(self._key(xml), []).append(xml)
        for picture in sorted(pictures, key=lambda picture: (picture.suffix.lower() != ".jpg", picture)):
            self._pictures.setdefault(self._key(picture), []).append(picture)
            self._by_stem.add(self._key(picture), picture)
            self._by_file.add(place_key(picture.relative_to(self.pictures)), picture)

    def _key(self, file: Path) -> str:
        top = self.pictures if file.is_relative_to(self.pictures) else self.labels
        return self._place(file.relative_to(top).with_suffix(""))

    def _place(self, path: str | Path) -> str:
        return place_key(path) if self._fold else Path(path).as_posix()

    def listed(self, *names: str) -> list[Path]:
        """The label files of the first of these image sets that exists, including missing files. Raises `UserError`."""
        chosen = next(filter(None, map(self._list, names)), None)
        try:
            named = lines_of(read_text(chosen)) if chosen else []
        except OSError as error:
            raise UserError(f"{chosen} cannot be read: {error.strerror or error}. Check its permissions.") from None
        lines = [slashes(line.strip()).lstrip("/") for line in named]
        asked = (self._labels.get(self._place(line), [self.labels / f"{line}.xml"]) for line in lines if line)
        return [xml for xmls in asked for xml in xmls]

    def _list(self, name: str) -> Path | None:
        return self.disk.find(self.folder / "ImageSets" / "Main" / f"{name}.txt")

    def unlisted(self) -> list[Path]:
        """The label files of all images, and those without an image."""
        lonely = (pictures[0] for key, pictures in self._pictures.items() if key not in self._labels)
        without = (self.labels / picture.relative_to(self.pictures).with_suffix(".xml") for picture in lonely)
        return [*(xml for xmls in self._labels.values() for xml in xmls), *without]

    def unused(self, used: Collection[Path]) -> list[Problem]:
        """A problem for each list with unused label files, and one for the label files that no list names."""
        left = {xml for xmls in self._labels.values() for xml in xmls}.difference(used)
        problems: list[Problem] = []
        for name in ("trainval", "train", "val", "test"):
            found = [xml for xml in self.listed(name) if xml in left]
            if found:
                what = f"{len(found)} label files are not used, because other lists are. The first is {found[0]}."
                problems.append(Problem("split not used", str(self._list(name)), what))
                left.difference_update(found)
        if left:
            what = f"no list in ImageSets/Main names {len(left)} label files. The first is {min(left)}."
            problems.append(Problem("split not used", str(self.labels), what))
        return problems

    def picture_of(self, xml: Path, name: str | None, problems: list[Problem]) -> Path:
        """The photo of a label file: the one with the same name, else the one that ``<filename>`` names.

        If ``<filename>`` names another existing photo, the files were renamed and ``<filename>`` is outdated.
        """
        own = self.namesakes(xml)
        said = slashes((name or "").strip())
        file = said.rsplit("/", 1)[-1]
        if own:
            named = [picture for picture in own if place_key(picture.name) == place_key(file)]
            doubts: list[Problem] = []
            other = self._match(self._by_file, place_key(said), xml, doubts) if said and not named else None
            if doubts or other not in (None, *own):
                what = f"its <filename> is another photo, {file}. Its boxes belong to {own[0].name}."
                problems.append(Problem("contradicting filename", str(xml), what))
            elif not named and len(own) > 1 and os.path.exists(xml):
                names = " and ".join(picture.name for picture in own)
                what = f"{names} have its name. Its boxes belong to {own[0].name}, unless <filename> names another."
                problems.append(Problem("several photos of one name", str(xml), what))
            return (named or own)[0]
        if os.path.exists(xml):
            folder = xml.relative_to(self.labels).parent.as_posix()
            place = said if folder == "." else f"{folder}/{file}"
            found = self._match(self._by_stem, self._key(xml), xml, problems)
            if found is None and file:
                found = self._match(self._by_file, place_key(place), xml, problems)
            if found is not None and self._key(found) not in self._labels:
                return found
        suffix = Path(file).suffix if Path(file).stem == xml.stem else ".jpg"
        return self.pictures / xml.relative_to(self.labels).with_suffix(suffix or ".jpg")

    def namesakes(self, xml: Path) -> list[Path]:
        """The photos with the name of a label file."""
        return self._pictures.get(self._key(xml), [])

    def _match(self, photos: ByName[Path], name: str, xml: Path, problems: list[Problem]) -> Path | None:
        """The photo of that name; None if there is none. Several photos of that name are a problem, and also None."""
        try:
            return photos.match(name)
        except UserError as error:
            problems.append(Problem("annotation without image", str(xml), f"{error}. Its boxes are not used."))
            return None


def _test(year: _Year, problems: list[Problem]) -> list[Path]:
    """The label files of the test set of a year, or of its val set if that is not training data."""
    xmls = year.listed("test") or (year.listed("val") if not year.listed("trainval") else [])
    if xmls and not any(os.path.exists(xml) for xml in xmls):
        what = f"none of its {len(xmls)} test images has a label file."
        problems.append(Problem("split not used", str(year.folder), what))
        return []
    return xmls


def _listing(source: Path, files: Sequence[tuple[_Year, Path]], problems: list[Problem]) -> Listing:
    found: dict[Path | str, dict[Path, ListedImage | None]] = {}  # photo -> its label files and their content
    broken: list[UserError] = []
    of_year = {xml: year for year, xml in files}
    for xml in sorted(of_year, key=lambda xml: (not os.path.exists(xml), xml)):
        if not os.path.exists(xml) and of_year[xml].picture_of(xml, None, []) in found:
            continue  # its photo has a label file of another name
        try:
            image = _image(xml, of_year[xml], problems)
            found.setdefault(image.path, {})[xml] = image
        except UserError as error:
            broken.append(error)
            problems.append(
                Problem("unreadable annotation", str(xml), f"{str(error).rstrip('.')}. Its image is skipped.")
            )
            found.setdefault(of_year[xml].picture_of(xml, None, []), {})[xml] = None
    for xml, year in of_year.items():
        for picture in year.namesakes(xml):
            if picture not in found:
                found[picture] = {xml: _namesake(picture, xml, problems)}
    images = [image for path, said in found.items() if (image := _agreed(path, said, problems)) is not None]
    if broken and len(broken) == sum(os.path.exists(xml) for xml in of_year):
        raise UserError(f"none of the {len(broken)} label files can be read: {broken[0]}")
    images.sort(key=lambda image: image.path)
    names = {box.name for image in images for box in image.boxes}
    known = Exported.of(source).classes
    return Listing(source, [*known, *sorted(names - set(known))], images, problems)


def _namesake(picture: Path, xml: Path, problems: list[Problem]) -> ListedImage:
    """A photo without labels, because another photo has the label file of its name, if that exists."""
    there = os.path.exists(xml)
    taken = f"the boxes of {xml.name} belong to another photo, so it has no label file and counts as unlabelled."
    problems.append(Problem("image without annotation", str(picture), taken if there else NO_LABEL_FILE))
    return ListedImage(picture, labelled=False, lost=there)


def _agreed(path: Path | str, said: Mapping[Path, ListedImage | None], problems: list[Problem]) -> ListedImage | None:
    """The photo of a label file, None if the file is broken; without labels if it has several different label files."""
    first, *others = said
    if not others or all(searchable(xml) == searchable(first) for xml in others):
        return said[first]
    what = f"its label files {' and '.join(map(str, said))} differ. None is used. Keep the right one."
    problems.append(Problem("several label files", str(path), what))
    return ListedImage(path, labelled=False, lost=True)


def _image(xml: Path, year: _Year, problems: list[Problem]) -> ListedImage:
    """The image of one label file, without objects if the file does not exist. Raises `UserError` if it is broken."""
    if not os.path.exists(xml):
        problems.append(Problem("image without annotation", str(xml), NO_LABEL_FILE))
        return ListedImage(year.picture_of(xml, None, problems), complete=year.unlabelled, labelled=False)
    root = _parse(xml)
    items = root.findall("object")
    boxes = [box for index, item in enumerate(items) if (box := _box(xml, index, item, problems))]
    unread = [*_unread(root), *(inner for item in items for inner in item if "object" in inner.tag and len(inner))]
    for element in unread:
        what = "it may hold objects, but only <object> directly below <annotation> is read. Move them there."
        problems.append(Problem("box dropped", f"{xml}: <{element.tag}>", what))
    picture = year.picture_of(xml, root.findtext("filename"), problems)
    size = listed_size(root.findtext("size/width"), root.findtext("size/height"), str(xml), problems)
    complete, lost = year.export.is_complete(picture, problems), len(boxes) < len(items) or bool(unread)
    guesses = year.export.guesses(picture.name)
    return ListedImage(picture, boxes, size=size, complete=complete, lost=lost, guesses=guesses)


def _unread(parent: ET.Element) -> Iterator[ET.Element]:
    """The elements beside the root's objects that may hold objects, by their names or their content."""
    for element in parent:
        if element.tag == "object":
            if parent.tag != "annotation":
                yield element
        elif not {child.tag for child in element}.isdisjoint(_EDGES) or (
            _OBJECT.search(element.tag) and (element.attrib or len((element.text or "").split()) > 1)
        ):
            yield element
        else:
            yield from _unread(element)


def _parse(xml: Path) -> ET.Element:
    """The root of a label file, with element names in lower case. Raises `UserError`, naming the line of a syntax
    error."""
    try:
        root = from_xml(read_bytes(xml))
    except ET.ParseError as error:
        raise UserError(f"{xml}, line {error.position[0]}: not valid XML ({error}). Repair the file.") from None
    except ValueError as error:
        raise UserError(f"{xml}: {error}.") from None
    except OSError as error:
        raise UserError(f"{xml} cannot be read: {error.strerror or error}.") from None
    for element in root.iter():
        element.tag = element.tag.lower()
    if root.tag != "annotation":
        raise UserError(f"{xml}: a PASCAL VOC file begins with <annotation>, not <{root.tag}>. Export it again as VOC.")
    if twice := _repeated(root, "filename", "size", "size/width", "size/height"):
        raise UserError(f"{xml}: there is more than one <{twice}>. Keep the right one.")
    return root


def _repeated(element: ET.Element, *paths: str) -> str:
    """The first of these elements that occurs more than once, which makes it ambiguous; empty if none does."""
    return next((path for path in paths if len(element.findall(path)) > 1), "")


def _box(xml: Path, index: int, item: ET.Element, problems: list[Problem]) -> ListedBox | None:
    where, name = f"{xml}: object {index + 1}", (item.findtext("name") or "").strip()
    if not name:
        problems.append(Problem("unknown category", where, "the object has no name. It is dropped."))
        return None
    if twice := _repeated(item, "name", "bndbox", *(f"bndbox/{edge}" for edge in _BOX)):
        problems.append(Problem("box dropped", where, f"it has more than one {twice}. Write one object for each box."))
        return None
    edges = [(item.findtext(f"bndbox/{edge}") or "").strip() for edge in _BOX]
    try:
        written = [float(edge) for edge in edges]
    except ValueError:
        comma = " Use a decimal point, not a comma." if "," in "".join(edges) else ""
        what = f"its bndbox does not hold xmin, ymin, xmax and ymax as numbers.{comma}"
        problems.append(Problem("box dropped", where, what))
        return None
    try:
        box = upright(to_zero_based(np.array(written)).tolist(), _attributes(item))
    except ValueError as error:
        problems.append(Problem("box dropped", where, str(error)))
        return None
    difficult = (item.findtext("difficult") or "").strip().lower() in ("1", "true")
    return ListedBox(box, name, difficult, where, (item.findtext("rarebox/source") or "").strip())


def _attributes(item: ET.Element) -> dict[str, str]:
    """The attributes of an object: its other elements, those of its bndbox, and CVAT's ``<attributes>``."""
    said: list[tuple[str | None, str | None]] = [
        (child.tag, child.text) for child in (*item, *item.findall("bndbox/*"))
    ]
    said += [(one.findtext("name"), one.findtext("value")) for one in item.findall("attributes/attribute")]
    return {name: text for name, text in said if name and text}


def wants_download(path: Path) -> bool:
    """Whether the path is named like a key of ``ARCHIVES`` and its data are missing or not fully unpacked."""
    if path.name not in ARCHIVES or os.path.isfile(path):
        return False
    if not os.path.exists(path) or not any(path.iterdir()):
        return True
    files = [path / Path(archive).name for archive in ARCHIVES[path.name]]
    begun = any(file.exists() or _part(file).exists() for file in files)
    return begun and not all(_mark(file).exists() for file in files)


def download(root: Path) -> None:
    """Download and unpack the archives of the data set that ``root`` is named after, except those already there.

    An interrupted download resumes where it stopped. Raises `UserError`, which says which files to put where.
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
    """The file that marks an archive as fully unpacked."""
    return file.with_name(file.name + ".unpacked")


def _fetch(file: Path, archive: str, progress: "Progress") -> None:
    """Download an archive to ``file`` and check its MD5. Raises `UserError`, ``OSError`` or ``HTTPException``."""
    mine = not file.exists()
    if mine:
        _stream(f"{HOST}/{archive}", _part(file), progress)
    found = _md5(_part(file) if mine else file)
    if found != MD5[archive]:
        if mine:
            _part(file).unlink()
        raise UserError(f"{file} is not the published file (md5 {found}, not {MD5[archive]}). Delete it and try again.")
    if mine:
        _part(file).rename(file)


def _stream(url: str, part: Path, progress: "Progress") -> None:
    """Download the missing rest of a file to ``part``."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=60)
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is missing
            return
        raise
    with response:
        have = have if response.status == HTTPStatus.PARTIAL_CONTENT else 0  # some servers cannot resume
        total = have + int(response.headers.get("Content-Length", 0))
        task = progress.add_task(part.stem, total=total or None, completed=have)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("ab" if have else "wb") as out:
                while block := response.read(1 << 18):
                    out.write(block)
                    progress.advance(task, len(block))
        except OSError as error:
            if error.errno == errno.ENOSPC:  # otherwise the partial file keeps the disk full
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
                        f"{file} cannot be unpacked: {member.name} would lie outside {root}. If a folder in it is "
                        f"a link, make {root} itself the link."
                    )
                if content := archive.extractfile(member) if member.isfile() else None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as written:
                        copyfileobj(content, written)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be unpacked ({error}). Delete it and try again.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be unpacked to {root} ({error}). Correct this and try again.") from None
    _mark(file).touch()


def _by_hand(root: Path, archives: Iterable[str], error: Exception) -> UserError:
    files = "\n".join(f"  {HOST}/{archive}" for archive in archives)
    return UserError(
        f"PASCAL VOC cannot be downloaded to {root} ({error}). Try again to resume, or get these files elsewhere, put "
        f"them into the folder {root.absolute()} without unpacking them, and start again:\n{files}"
    )
