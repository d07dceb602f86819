"""The images that a command is given: how they are named, and where their files are."""

import json
from pathlib import Path

import pytest
from PIL import Image

from rarebox import config
from rarebox.data.image_list import NamedImage
from rarebox.data.image_list import named_images as list_images
from rarebox.errors import UserError
from rarebox.external import rank
from rarebox.labels.store import Store
from rarebox.project.create import create


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("photos/a.png", "photos/b/a.png", "elsewhere/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    return tmp_path / "photos"


def named_images(place: Path) -> list[NamedImage]:
    return list_images(place, but=place / "nothing")


def names_of(place: Path) -> list[str]:
    return [name for name, _ in named_images(place)]


def test_folder_and_single_image(photos: Path) -> None:
    # "a.png" alone would be the end of both paths, and other commands could not tell which one is meant
    assert named_images(photos) == [("photos/a.png", photos / "a.png"), ("b/a.png", photos / "b/a.png")]
    assert named_images(photos / "b/a.png") == [("a.png", photos / "b/a.png")]


def test_what_the_command_writes_is_left_out(photos: Path) -> None:
    (photos / "out").symlink_to(photos / "b")
    assert [name for name, _ in list_images(photos, but=photos / "out")] == ["a.png"]
    assert list_images(photos / "b/a.png", but=photos / "b")  # named by the user


def test_list_of_paths(photos: Path) -> None:
    url = "https://example.org/far/c.jpg"
    (photos / "list.txt").write_text(f"b/a.png\r\n\n  {photos.parent}/elsewhere/a.png\n{url}\n", encoding="utf-8-sig")
    found = dict(named_images(photos / "list.txt"))
    assert found == {
        "b/a.png": photos / "b/a.png",
        "elsewhere/a.png": photos.parent / "elsewhere/a.png",
        "c.jpg": url,
    }


def test_images_with_one_name_are_distinguished(photos: Path) -> None:
    listed = (photos / "a.png", photos / "b/a.png", photos.parent / "elsewhere/a.png")
    (photos.parent / "b.txt").write_text("")
    (photos / "b" / "list.txt").write_text("".join(f"{path}\n" for path in listed))
    names = names_of(photos / "b" / "list.txt")
    assert len({*names}) == 3
    for name in names:
        assert [str(path).endswith(f"/{name}") for path in listed].count(True) == 1


def test_an_image_is_listed_once_however_it_is_spelled(photos: Path) -> None:
    (photos / "link.png").symlink_to(photos / "b/a.png")
    (photos / "list.txt").write_text("b/a.png\n./b/a.png\nb/../b/a.png\nlink.png\n")
    assert named_images(photos / "list.txt") == [("b/a.png", photos / "b/a.png")]


def test_a_list_has_comments_and_may_be_from_windows(photos: Path) -> None:
    (photos / "odd\\name.png").symlink_to(photos.parent / "elsewhere/a.png")
    (photos / "list.txt").write_text("# frames\nb\\a.png\nodd\\name.png\n")
    assert [path for _, path in named_images(photos / "list.txt")] == [photos / "b/a.png", photos / "odd\\name.png"]


def test_a_line_of_a_list_is_a_file_first_and_else_a_comment(photos: Path) -> None:
    odd = ["#1.png", "# a.png", " lead.png"]
    for name in odd:
        (photos / name).symlink_to(photos / "b/a.png" if name == odd[0] else photos.parent / f"elsewhere{name}")
        if name != odd[0]:
            Image.new("RGB", (20, 10)).save(photos.parent / f"elsewhere{name}")
    (photos / "list.txt").write_text("# frames\n" + "".join(f"{name}\n" for name in odd) + "#no.png\n")
    assert [str(path) for _, path in named_images(photos / "list.txt")] == [str(photos / name) for name in odd]


def test_every_command_takes_a_photo_of_a_list_once(photos: Path) -> None:
    (photos / "link.png").symlink_to(photos / "b/a.png")
    listed = photos / "list.txt"
    listed.write_text(f"b/a.png\n./b/a.png\nlink.png\na.png\n{photos}/a.png\n# end\n")
    create(photos.parent / "project", listed, ["cat"])
    with Store(photos.parent / "project" / "labels.sqlite") as store:
        assert [image.path for image in store.images().values()] == [str(photos / "b/a.png"), str(photos / "a.png")]
    (told,) = json.loads((photos.parent / "project" / "problems.json").read_text())
    assert (told["kind"], told["where"]) == ("image listed twice", str(photos / "b/a.png"))
    assert told["what"].startswith("3 lines of ")
    found = photos.parent / "found"
    line = {"image": "b/a.png", "boxes": [[1, 1, 9, 9]], "scores": [0.9], "labels": ["cat"]}
    found.write_text(json.dumps(line))
    ranked = rank(found, None, None, listed, config.resolve("laptop", None, {}), 9)
    assert [image.path for image in ranked.images.values()] == [str(photos / "b/a.png"), str(photos / "a.png")]
    assert [(query.image_id, ranked.images[1].width) for query in ranked.queries] == [(1, 20)]


def test_urls_with_the_same_path_have_distinct_names(photos: Path) -> None:
    urls = ["https://h.org/etc/x.jpg?v=1", "https://h.org/etc/x.jpg?v=2", "https://i.org/../etc/x.jpg", "https://h.org"]
    (photos / "list.txt").write_text("".join(f"{url}\n" for url in urls))
    assert named_images(photos / "list.txt") == [
        ("h.org/etc/x.jpg", urls[0]),
        ("h.org/etc/x-2.jpg", urls[1]),
        ("i.org/etc/x.jpg", urls[2]),
        ("h.org", urls[3]),
    ]


def test_coco_file(photos: Path) -> None:
    images = [{"id": 7, "file_name": "b/a.png", "width": 20, "height": 10}]
    (photos / "set.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert names_of(photos / "set.json") == ["b/a.png"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bad.txt", "it is not a URL"),
        ("film.MOV", "ffmpeg"),
        ("empty.txt", "contains no images"),
        ("gone", "does not exist"),
        ("text.json", "not valid"),
    ],
)
def test_mistakes(photos: Path, name: str, said: str) -> None:
    if name != "gone":
        (photos / name).write_text("a.png\nhttp://[bad\n" if name == "bad.txt" else "")
    with pytest.raises(UserError, match=said):
        named_images(photos / name)
