"""With any names of classes and images, every export is read back with the right photos and classes."""

import json
import sys
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from rarebox import external
from rarebox.config import resolve
from rarebox.data import cvat, datasets, labelstudio, listings
from rarebox.data.export import Annotations, export, export_queries
from rarebox.data.images import SUFFIXES
from rarebox.data.listings import Listing
from rarebox.data.naming import clean, clean_all, file_names
from rarebox.errors import UserError, presentable
from rarebox.external import write_copies
from rarebox.labels.store import Store
from rarebox.loop.run_folder import open_store
from rarebox.project.exchange.importing import bring_in
from rarebox.project.exchange.questions import open_questions
from rarebox.types import ImageRecord, Query, Source
from tests import hostile

NASTY = (
    "",
    " ",
    "a\nb",
    "a\r\nb",
    "a\x00b",
    "a\x1b[31mb",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "a\u2029b",
    "\ufeffa",
    "a\ufffeb",
    "\ud800",
    "a\udcffb",
    "a  b",
    " a",
    "a\u00a0",
    "\u3000a",
    "..",
    ".",
    ".a",
    "a.",
    "a/b",
    "a\\b",
    "../../a",
    "on",
    "no",
    "~",
    "null",
    "1:30",
    "0x1",
    "1e3",
    "<a>&\"'",
    "]]>",
    "#a",
    "- a",
    "a: b",
    "{a}",
    "[a]",
    "*a",
    "&a",
    "!a",
    "%a",
    "@a",
    "`a",
    "=1+1",
    "é",
    "e\u0301",
    "猫",
    "🐈\u200d⬛",
    "\u202ea",
    "a" * 300,
    "é" * 200,
    "A",
    "a",
    "rarebox",
    "class",
    "labels",
    "images",
)

texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=12))
"""Any text, with lone surrogates."""


@given(texts)
def test_a_cleaned_name_is_one_line_that_xml_and_yaml_hold(name: str) -> None:
    cleaned = clean(name)
    assert clean(cleaned) == cleaned
    assert cleaned.splitlines() == ([cleaned] if cleaned else [])
    assert cleaned == cleaned.strip()
    assert not {unicodedata.category(sign) for sign in cleaned} & {"Cc", "Cs", "Zl", "Zp"}
    assert ET.fromstring(f"<a>{ET.tostring(_element(cleaned), encoding='unicode')}</a>")[0].text == (cleaned or None)


def _element(text: str) -> ET.Element:
    element = ET.Element("b")
    element.text = text
    return element


@given(st.lists(texts, max_size=6))
def test_the_number_of_names_is_unchanged(names: list[str]) -> None:
    assert len(set(clean_all(names))) == len(names)
    files = file_names([(n, f"/photos/{name}.png".replace("\x00", "")) for n, name in enumerate(names, 1)], SUFFIXES)
    assert len({Path(file).stem.casefold() for file in files}) == len(names)
    assert file_names([(1, "/photos/a.png"), (2, "b.png")], SUFFIXES) == ["a.png", "b.png"]
    for file in files:
        assert clean(file) == file
        assert not set("/\\") & set(file)
        assert file[0] not in ". "
        assert len(file.encode()) < 255
        assert Path(file).suffix == ".png"


def record_of(folder: Path, number: int, name: str) -> ImageRecord | None:
    """A photo of that name on the disk; None if the disk cannot hold the name."""
    file = folder / str(number) / f"{name}.png"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (number, 0, 0)).save(file)
    except (OSError, ValueError):
        return None
    return ImageRecord(number, str(file), 20, 10)


def shade(path: str) -> int:
    """Which photo it is."""
    with Image.open(path) as image:
        pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_every_data_set_that_is_written_is_read_with_the_same_boxes(
    format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(max_examples=40)
    @given(st.lists(texts, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=4))
    @example(list(NASTY[:24]), list(NASTY[:24]))
    @example(list(NASTY[24:]), list(NASTY[24:]))
    def check(classes: list[str], photos: list[str]) -> None:
        folder = tmp_path_factory.mktemp("names")
        images = [image for n, name in enumerate(photos, 1) if (image := record_of(folder, n, name))]
        if not images:
            return
        each = len(classes)
        boxes = np.array([[1, 1, 5 + n % 10, 9] for n in range(each)], dtype=np.float32)
        ones = np.ones(each)
        said = [
            Annotations(image.id, boxes, np.arange(each), np.array([Source.HUMAN] * each), ones, ones, ones, True)
            for image in images
        ]
        export(folder / "labels", format, classes, images, said)
        found = datasets.load(folder / "labels")
        assert not found.problems
        assert list(found.classes) == clean_all(classes)
        assert sorted(shade(image.path) for image in found.train.images) == [image.id for image in images]
        for image in found.train.images:
            assert found.train.truth[image.id].labels.tolist() == list(range(each))

    check()


@pytest.mark.parametrize("format", ["labelstudio", "cvat"])
def test_exported_questions_are_returned_as_answers(format: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(max_examples=30)
    @given(st.lists(texts, min_size=1, max_size=3), st.lists(texts, min_size=1, max_size=3))
    @example(list(NASTY[:24]), list(NASTY[:24]))
    @example(list(NASTY[24:]), list(NASTY[24:]))
    def check(classes: list[str], photos: list[str]) -> None:
        folder = tmp_path_factory.mktemp("names")
        images = [image for n, name in enumerate(photos, 1) if (image := record_of(folder, n, name))]
        images = [image for image in images if image.path.isprintable()]  # others are not photos of a project
        classes = clean_all(classes)
        if not images:
            return
        with Store(folder / "labels.sqlite", classes=classes) as store:
            store.add_images(images)
            store.open_cycle(2)
            box = np.array([2, 2, 8, 8], dtype=np.float32)
            asked = [Query(image.id, box, image.id % len(classes), 0.5, {"score": 0.5}) for image in images]
            store.ask(2, asked)
            found = open_questions(store)
            export_queries(folder / "out", format, found.classes, list(found.images.values()), found.queries)
            batch = answered(folder / "out", format)
            done = bring_in(store, batch, format)
            assert done.objects == len(images)
            for query in store.queries():
                assert store.labels()[query.image_id].labels.tolist() == [query.guess]

    check()


def answered(folder: Path, format: str) -> Any:
    """The tool's export after a person has accepted everything."""
    if format == "cvat":
        return cvat.read(folder / "annotations.xml")
    labelstudio.classes_of((folder / "config.xml").read_text(encoding="utf-8"))
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    for task in tasks:
        task["annotations"] = [{"id": 1, "result": task["predictions"][0]["result"], "parent_prediction": 1}]
    (folder / "back.json").write_text(json.dumps(tasks), encoding="utf-8")
    return labelstudio.read(folder / "back.json")


@pytest.mark.parametrize("name", ["cat\x00", "c\nat", "\ud800", "\x1b[2J"])
def test_an_unwritable_class_name_is_cleaned_on_import_and_listed(tmp_path: Path, name: str) -> None:
    hostile.make_coco(tmp_path)
    content = hostile.coco_content()
    content["categories"][0]["name"] = name
    (tmp_path / "train.json").write_text(json.dumps(content))
    found = datasets.load(tmp_path)
    problem = next(problem for problem in found.problems if problem.kind == "class name cleaned")
    assert clean(name) in found.classes
    assert repr(clean(name)) in problem.what
    hostile.use(found)


def test_names_that_are_equal_when_cleaned_are_one_class(tmp_path: Path) -> None:
    found = Listing(tmp_path, ["cat", "cat\n"], [], [])
    assert found.classes == ["cat"]
    (problem,) = found.problems
    assert "so both become one class" in problem.what


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are possible on Linux alone")
def test_a_photo_whose_name_is_not_utf8_is_listed(tmp_path: Path) -> None:
    hostile.make_coco(tmp_path)
    strange = bytes(tmp_path / "images") + b"/\xff.png"
    (tmp_path / "images" / "a.png").rename(Path(strange.decode(errors="surrogateescape")))
    content = hostile.coco_content()
    content["images"][0]["file_name"] = "\udcff.png"
    (tmp_path / "train.json").write_text(json.dumps(content))
    found = datasets.load(tmp_path)
    assert "its name is not valid UTF-8. Rename it. The image is skipped." in [p.what for p in found.problems]
    hostile.use(found)


@pytest.mark.parametrize("name", ["c\nat", "cat\x00", "\ud800"])
def test_detections_of_a_class_that_no_file_can_hold_name_it(tmp_path: Path, name: str) -> None:
    line = {"image": "a.png", "width": 20, "height": 10, "boxes": [[1, 1, 9, 9]], "scores": [0.5], "labels": [name]}
    for lines in ([line], [{"classes": [name]}, {**line, "labels": [0]}]):
        (tmp_path / "lines.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        with pytest.raises(UserError, match=r"line 1: the class .* cannot be written"):
            external.rank(tmp_path / "lines.jsonl", None, None, None, resolve(), 1)


def test_copies_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (80, 80)).save(tmp_path / f"{name}.png")
    content = hostile.coco_content()
    content["images"] = [
        {"id": n, "file_name": name, "width": 80, "height": 80} for n, name in enumerate(("../a.png", "../b.png"), 1)
    ]
    (tmp_path / "data" / "train.json").write_text(json.dumps(content))
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    write_copies.write_copies(tmp_path / "data" / "train.json", tmp_path / "to" / "here", ["flip"], 0)
    new = {file for file in tmp_path.rglob("*") if file.is_file()} - before
    assert len(new) == 4  # with views.json and the mark
    assert all(file.is_relative_to(tmp_path / "to" / "here") for file in new)
    assert len([file for file in new if file.is_relative_to(tmp_path / "to" / "here" / "images")]) == 2


def test_messages_show_no_control_characters_and_no_passwords() -> None:
    said = "a\x1b[2J\nb\t\u2028\ud800 https://anna:pw@host/a?sig=1 and postgresql+psycopg://ben:pw@host/db"
    assert presentable(said) == ("a\\x1b[2J\nb\t\\u2028\\ud800 https://host/a?… and postgresql+psycopg://host/db")
    assert str(UserError(said)) == presentable(said)
    assert listings.Problem("kind", said, said).what == presentable(said)


def test_an_open_store_is_named_without_its_password() -> None:
    with pytest.raises(UserError) as error:
        open_store("nodriver://anna:s3cret@host/db")
    assert "s3cret" not in str(error.value)
