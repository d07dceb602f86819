"""Labels with their own photos: labels belong to the project's photo with the same content."""

from pathlib import Path

import pytest
from PIL import Image

from rarebox.project.create import create
from rarebox.project.project import Project

VOC = (
    "<annotation><filename>{}.png</filename><size><width>64</width><height>48</height></size><object><name>{}</name>"
    "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"
)


def photo(file: Path, grey: int) -> None:
    file.parent.mkdir(exist_ok=True)
    Image.new("L", (64, 48), grey).save(file)


def classes_of_photos(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The labelled classes by photo, and the kinds of the problems that name a photo."""
    problems = create(folder / "p", folder / "photos", labels=folder / "labels")
    project = Project(folder / "p")
    names, images, labels = project.store.classes(), project.store.images(), project.store.labels()
    project.store.close()
    kinds = [problem.kind for problem in problems if Path(problem.where).suffix == ".png"]
    return {Path(images[i].path).stem: [names[n] for n in one.labels] for i, one in labels.items()}, kinds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Labels of x (a cat, grey 10) and y (a dog, grey 20), with their own photos."""
    for name, label, grey in (("x", "cat", 10), ("y", "dog", 20)):
        photo(tmp_path / "labels" / f"{name}.png", grey)
        (tmp_path / "labels" / f"{name}.xml").write_text(VOC.format(name, label))
    return tmp_path


def test_labels_follow_photos_whose_names_were_swapped(folder: Path) -> None:
    photo(folder / "photos" / "x.png", 20)
    photo(folder / "photos" / "y.png", 10)
    labels, kinds = classes_of_photos(folder)
    assert labels == {"x": ["dog"], "y": ["cat"]}
    assert kinds == ["contradicting name"] * 2


def test_a_photo_that_was_edited_is_found_by_its_name(folder: Path) -> None:
    photo(folder / "photos" / "x.png", 11)
    photo(folder / "photos" / "y.png", 20)
    assert classes_of_photos(folder) == ({"x": ["cat"], "y": ["dog"]}, ["content differs"])


def test_labels_whose_content_fits_several_photos_of_other_names_are_left_out(folder: Path) -> None:
    photo(folder / "photos" / "x.png", 30)
    for name in ("a", "b"):
        photo(folder / "photos" / f"{name}.png", 10)
    photo(folder / "photos" / "y.png", 20)
    assert classes_of_photos(folder) == ({"y": ["dog"]}, ["labels match no single photo"])
