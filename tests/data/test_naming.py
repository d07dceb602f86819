"""Names of images in files of other tools, and the photos that they mean."""

import pytest

from rarebox.data.naming import ByName, clean
from rarebox.errors import UserError, presentable

PHOTOS = (
    "/x/photos/cam1/1.jpg",
    "/x/photos/cam2/1.jpg",
    "/x/photos/cam1/2.jpg",
    "/x/photos/20240315-0900.jpg",
    "/x/photos/0900.jpg",
    "/x/photos/\u00e4 b.png",
    "/x/photos/IMG (4).jpg",
    "/x/photos/deadbeef-5.jpg",
    "/x/photos/100%25.jpg",
    "s3://bucket/far/6.jpg",
)


def known(*paths: str) -> ByName[str]:
    by_name = ByName[str]()
    for path in paths:
        by_name.add(path, path)
    return by_name


@pytest.mark.parametrize(
    ("name", "photo"),
    [
        ("/x/photos/cam2/1.jpg", "/x/photos/cam2/1.jpg"),
        ("/elsewhere/cam2/1.jpg", "/x/photos/cam2/1.jpg"),  # another machine's folder
        ("C:\\Users\\me\\cam2\\1.jpg", "/x/photos/cam2/1.jpg"),
        ("/data/local-files/?d=mnt/cam1/1.jpg", "/x/photos/cam1/1.jpg"),
        ("https://example.org/cam1/1.jpg?width=3", "/x/photos/cam1/1.jpg"),
        ("cam2%2F1.jpg", "/x/photos/cam2/1.jpg"),
        ("mnt/2.jpg", "/x/photos/cam1/2.jpg"),  # the only one with that name, and the path names none of our folders
        ("cam2/2.jpg", None),
        ("20240315-0900.jpg", "/x/photos/20240315-0900.jpg"),
        ("/data/upload/3/20240315-0900.jpg", "/x/photos/20240315-0900.jpg"),
        ("20240316-0900.jpg", None),  # may be the photo of another day
        ("/data/upload/3/20240316-0900.jpg", "/x/photos/0900.jpg"),  # Label Studio added the prefix
        ("images/1a2b3c4d-2.jpg", "/x/photos/cam1/2.jpg"),
        ("cam2/1a2b3c4d-2.jpg", None),
        ("/data/upload/3/deadbeef-5.jpg", "/x/photos/deadbeef-5.jpg"),
        ("/data/upload/3/1a2b3c4d-IMG_4.jpg", "/x/photos/IMG (4).jpg"),
        ("/data/local-files/?d=a%CC%88%20b.png", "/x/photos/\u00e4 b.png"),
        ("a\u0308 b.png", "/x/photos/\u00e4 b.png"),
        ("100%25.jpg", "/x/photos/100%25.jpg"),  # the unchanged name has priority
        ("s3://bucket/far/6.jpg", "s3://bucket/far/6.jpg"),
        ("7.jpg", None),
        ("", None),
    ],
)
def test_what_another_tool_means(name: str, photo: str | None) -> None:
    assert known(*PHOTOS).match(name) == photo


@pytest.mark.parametrize("name", ["1.jpg", "mnt/1.jpg", "/data/upload/3/1a2b3c4d-1.jpg"])
def test_a_name_that_means_two_photos_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"may be .*cam1/1.jpg or .*cam2/1.jpg"):
        known(*PHOTOS).match(name)


def test_uploads_with_equal_cleaned_names_are_distinguished_or_refused() -> None:
    with pytest.raises(UserError, match="may be"):
        known("a/IMG_4.jpg", "a/IMG (4).jpg").match("/data/upload/1/1a2b3c4d-IMG_4.jpg")


def test_a_number_in_the_address_of_an_upload_is_no_folder_of_ours() -> None:
    assert known("/x/3/1.jpg", "/x/4/2.jpg").match("/data/upload/3/1a2b3c4d-2.jpg") == "/x/4/2.jpg"


def test_find_matches_names_literally() -> None:
    photos = known(*PHOTOS, "b.jpg", "c/b.jpg")
    assert photos.find("cam1/1.jpg") == "/x/photos/cam1/1.jpg"
    assert photos.find("c/b.jpg") == "c/b.jpg"
    assert photos.find("d/b.jpg") == "b.jpg"
    for name in ("elsewhere/2.jpg", "1a2b3c4d-2.jpg", "/photos/cam1/1.jpg"):
        assert photos.find(name) is None
    with pytest.raises(UserError, match="as much of the path"):
        photos.find("1.jpg")


@pytest.mark.parametrize(
    ("name", "photo"),
    [
        ("images/1a2b3c4d__photo%201.jpg", "/x/photo 1.jpg"),
        ("images/1a2b3c__photo 1.jpg", "/x/photo 1.jpg"),
        ("images/f2faa2d9__s02%2Fa.jpg", "/x/s02/a.jpg"),
        ("images/20240315__photo 1.jpg", None),  # a date
        ("images/PHOTO 1.JPG", "/x/photo 1.jpg"),
        ("S02/A.JPG", "/x/s02/a.jpg"),
        ("s01/A.JPG", "/x/s01/A.JPG"),
        ("S03/a.jpg", None),  # it is in other folders
    ],
)
def test_names_of_label_studio_storage_and_in_other_capitals(name: str, photo: str | None) -> None:
    assert known("/x/photo 1.jpg", "/x/s02/a.jpg", "/x/s01/A.JPG", "/x/s03/b.jpg").match(name) == photo


def test_a_name_in_capitals_that_fit_two_photos_is_refused() -> None:
    with pytest.raises(UserError, match=r"may be .*/x/a.jpg or .*/x/A.jpg"):
        known("/x/a.jpg", "/x/A.jpg").match("A.JPG")


@pytest.mark.parametrize(
    "name",
    ["dog\u202e", "do\u200bg", "do\u200dg", "\ufeffdog", "\u200ddog", "do\xadg", "d\u2066og\u2069", "dog\U000e0067"],
)
def test_invisible_characters_and_marks_of_direction_are_removed(name: str) -> None:
    assert clean(name) == "dog"
    assert "\u202e" not in presentable("photos/dog\u202egnp.exe")


@pytest.mark.parametrize(
    "name",
    [
        "\U0001f469\u200d\U0001f52c",  # an emoji of two, joined
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a non-joiner
        "\u0915\u094d\u200d",  # half a letter of Hindi
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
    ],
)
def test_invisible_characters_that_a_script_needs_stay(name: str) -> None:
    assert clean(name) == name
