"""Photos that were moved, renamed or copied keep their numbers and their labels."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update
from typer.testing import CliRunner

from rarebox.cli.main import app
from rarebox.errors import UserError
from rarebox.labels import schema
from rarebox.labels.store import Store
from rarebox.project.create import create
from rarebox.project.photo_folder import relocate
from rarebox.project.project import Project
from rarebox.types import Answer, Query, Verdict
from tests import tiny

pytestmark = pytest.mark.usefixtures("small_network")

NAMES = ("a/1.png", "a/2.png", "b/1.png", "b/2.png", "twin.png", "b/twin.png")
BOX = np.array([[1, 1, 9, 9]], dtype=np.float32)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos of one size; names recur in the two folders, and the last two have the same content."""
    for number, name in enumerate(NAMES):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (min(number, 4) * 20, 0, 0)).save(file)
    return tmp_path / "photos"


@pytest.fixture(params=["new", "old"])
def root(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Path:
    """A project with one answer for each photo; also an old one without hashes."""
    root = tmp_path / "project"
    create(root, photos, ["fish"])
    with Store(root / "labels.sqlite") as store:
        store.open_cycle(1)
        asked = store.ask(1, [Query(image_id) for image_id in store.images()])
        store.record([Answer(query.id, BOX, np.array([0]), Verdict.OBJECT) for query in asked])
        if request.param == "old":
            with store.transaction(writes=True) as connection:
                connection.execute(update(schema.images).values(digest=None))
    return root


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def start(root: Path, data: Path | None = None) -> tuple[dict[int, str], int]:
    """The first step of `serve` after ``data`` was changed: the path of each image, and the number of new ones."""
    if data:
        settings = root / "settings.yaml"
        lines = settings.read_text(encoding="utf-8").splitlines()
        settings.write_text("\n".join(f"data: {data}" if line.startswith("data:") else line for line in lines))
    project = Project(root)
    try:
        new = project.add_new_images()
        assert len(project.store.labels()) == len(NAMES)
        return {i: image.path for i, image in project.store.images().items()}, new
    finally:
        project.store.close()


@pytest.fixture
def before(root: Path) -> Iterator[dict[int, str]]:
    there, _ = start(root)
    kept = {i: content(path) for i, path in there.items()}
    yield there
    after, _ = start(root)
    here = {i: path for i, path in after.items() if i in kept and Path(path).exists()}
    assert {i: content(path) for i, path in here.items()} == {i: kept[i] for i in here}  # never another photo's labels
    assert len(set(after.values())) == len(after)


def test_a_folder_that_was_moved(root: Path, photos: Path, before: dict[int, str], tmp_path: Path) -> None:
    photos.rename(tmp_path / "moved")
    after, new = start(root, tmp_path / "moved")
    assert new == 0
    assert after == {i: path.replace(str(photos), str(tmp_path / "moved")) for i, path in before.items()}
    assert start(root) == (after, 0)


def test_a_folder_that_was_copied(root: Path, photos: Path, before: dict[int, str], tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy")
    Image.new("RGB", (20, 10), (0, 99, 0)).save(tmp_path / "copy" / "new.png")
    after, new = start(root, tmp_path / "copy")
    assert (new, len(after)) == (1, len(NAMES) + 1)
    assert all(path.startswith(str(tmp_path / "copy")) for path in after.values())


def test_another_folder_with_the_same_names_holds_new_photos(
    root: Path, photos: Path, before: dict[int, str], tmp_path: Path
) -> None:
    for name in NAMES:
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (0, 0, 99)).save(tmp_path / "other" / name)
    after, new = start(root, tmp_path / "other")
    assert new == len(NAMES)
    assert {i: after[i] for i in before} == before


def test_a_part_of_a_moved_folder(root: Path, photos: Path, before: dict[int, str], tmp_path: Path) -> None:
    photos.rename(tmp_path / "moved")
    (tmp_path / "moved" / "a/1.png").rename(tmp_path / "aside.png")
    after, new = start(root, tmp_path / "moved")
    assert new == 0
    assert [i for i in before if after[i] == before[i]] == [i for i, path in before.items() if path.endswith("a/1.png")]
    (tmp_path / "aside.png").rename(tmp_path / "moved" / "a/1.png")
    after, new = start(root)
    assert new == 0
    assert all(path.startswith(str(tmp_path / "moved")) for path in after.values())


@pytest.mark.parametrize("root", ["new"], indirect=True)
def test_photos_that_were_renamed_and_sorted_otherwise(
    root: Path, photos: Path, before: dict[int, str], tmp_path: Path
) -> None:
    (photos / "c").mkdir()
    for number, name in enumerate(NAMES):
        (photos / name).rename(photos / "c" / f"img{len(NAMES) - number}.png")
    after, new = start(root)
    assert new == 0
    assert all(Path(path).parent.name == "c" for path in after.values())


@pytest.mark.parametrize("root", ["old"], indirect=True)
def test_without_hashes_a_name_that_fits_twice_is_not_guessed_at(
    root: Path, photos: Path, before: dict[int, str], tmp_path: Path
) -> None:
    for folder in ("x", "y"):
        shutil.copytree(photos / "a", tmp_path / "moved" / folder)
    shutil.rmtree(photos)
    after, new = start(root, tmp_path / "moved")
    assert new == 4
    assert {i: after[i] for i in before} == before


# ------------------------------------------------------------------------------------------- the command


def test_relocate(root: Path, photos: Path, before: dict[int, str], tmp_path: Path) -> None:
    settings = root / "settings.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("seed: 0", "seed: 7  # of mine"), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    text = settings.read_text(encoding="utf-8")
    for place, message in ((tmp_path / "empty", "none of the 6 images"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(UserError, match=message):
            relocate(root, place)
    assert settings.read_text(encoding="utf-8") == text
    photos.rename(tmp_path / "my photos")
    (tmp_path / "my photos" / "twin.png").unlink()
    for _ in range(2):
        done = CliRunner().invoke(app, ["relocate", str(root), str(tmp_path / "my photos")])
        assert done.exit_code == 0, done.output
        assert "5 photos found in" in done.stdout
        assert "1 photo not found there" in done.stderr
        assert f"not found: {photos / 'twin.png'}" in done.stderr
    assert settings.read_text(encoding="utf-8") == text.replace(str(photos), str(tmp_path / "my photos"))
    after, new = start(root)
    assert new == 0
    assert sum(str(tmp_path / "my photos") in path for path in after.values()) == 5


def test_the_data_set_of_a_run_that_was_moved(tmp_path: Path) -> None:
    data = tiny.make_data(tmp_path / "data")
    options = [*tiny.as_options(budget="[]"), "--json"]
    run = ["run", str(tmp_path / "run"), "--data"]
    first = CliRunner().invoke(app, [*run, str(data), *options])
    assert first.exit_code == 0, first.output
    data.rename(tmp_path / "moved")
    done = CliRunner().invoke(app, ["relocate", str(tmp_path / "run"), str(tmp_path / "moved")])
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(app, [*run, str(tmp_path / "moved"), *options])
    assert again.exit_code == 0, again.output
    exported = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "labels")])
    assert exported.exit_code == 0, exported.output
    assert not (tmp_path / "labels" / "missing.txt").exists()
