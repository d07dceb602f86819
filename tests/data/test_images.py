"""Images of every kind come out upright, 8-bit and RGB, or say why they cannot."""

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from rarebox.data import images
from rarebox.data.images import UnreadableImage, image_files, image_size, read_image, read_picture, working_size
from rarebox.data.memory_limit import MemoryLimit
from rarebox.types import ImageRecord
from rarebox.web.pictures import picture_of

RED, WHITE = [255, 0, 0], [255, 255, 255]


def corners(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Black, with the upper left quarter red."""
    image = Image.new("RGB", size)
    image.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colour_modes_decode_to_the_same_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    corners().convert(mode).save(path)
    assert np.array_equal(read_image(path), np.asarray(corners()))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_modes_have_three_equal_channels(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (6, 4))
    grey.paste(255, (0, 0, 3, 4))
    grey.convert(mode).save(tmp_path / "image.png")
    expected = np.zeros((4, 6, 3), dtype=np.uint8)
    expected[:, :3] = 255
    assert np.array_equal(read_image(tmp_path / "image.png"), expected)


def test_a_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    corners().convert("CMYK").save(tmp_path / "image.jpg", quality=100)
    pixels = read_image(tmp_path / "image.jpg")
    assert np.abs(pixels[5, 5].astype(int) - RED).max() < 12
    assert pixels[15, 35].max() < 12


def test_transparency_shows_white(tmp_path: Path) -> None:
    image = corners().convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "image.png")
    pixels = read_image(tmp_path / "image.png")
    assert pixels[0, 0].tolist() == WHITE
    assert pixels[0, 1].tolist() == RED


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_over_its_full_range(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16)).save(tmp_path / f"image.{suffix}")
    assert read_image(tmp_path / f"image.{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]
    Image.fromarray(np.array([[257, 514]], dtype=np.uint16)).save(tmp_path / f"dark.{suffix}")
    assert read_image(tmp_path / f"dark.{suffix}")[0, :, 0].tolist() == [1, 2]


def test_float_grey_is_stretched(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)).save(tmp_path / "image.tif")
    assert read_image(tmp_path / "image.tif")[0, :, 2].tolist() == [0, 128, 255]
    Image.fromarray(np.full((2, 2), 7, dtype=np.float32)).save(tmp_path / "flat.tif")
    assert not read_image(tmp_path / "flat.tif").any()


STORED_TO_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", list(STORED_TO_UPRIGHT))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif, path = Image.Exif(), tmp_path / f"image.{suffix}"
    exif[0x0112] = orientation
    corners().save(path, exif=exif, lossless=True)  # which only WebP heeds
    upright = STORED_TO_UPRIGHT[orientation](np.asarray(corners()))
    assert np.array_equal(read_image(path), upright)
    width, height, told = image_size(path)
    assert (height, width) == upright.shape[:2]
    if suffix != "tif":  # Pillow rotates TIFF files itself, silently
        assert told == orientation
    picture = read_picture(ImageRecord(1, str(path), width, height), min(width, height), max(width, height))
    assert np.array_equal(picture.pixels, upright)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
AS_LONG = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 4, 1, 6, 0)
TWO = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 2, 6, 6, 0)


@pytest.mark.filterwarnings("ignore:Metadata Warning")  # of two orientations
@pytest.mark.parametrize(
    ("suffix", "more"),
    [("jpg", {"xmp": XMP}), ("webp", {"xmp": XMP}), ("jpg", {"exif": AS_LONG}), ("jpg", {"exif": TWO}), ("tif", None)],
)
def test_an_orientation_that_browsers_ignore_is_ignored(tmp_path: Path, suffix: str, more: dict[str, Any]) -> None:
    path, stored = tmp_path / f"image.{suffix}", corners((40, 20))
    if suffix == "tif":
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[700] = XMP
        more = {"tiffinfo": info}
    stored.save(path, quality=95, **more)
    assert image_size(path) == (40, 20, 1)
    assert np.abs(read_image(path).astype(int) - np.asarray(stored)).mean() < 3
    assert read_picture(ImageRecord(1, str(path), 40, 20), 20, 40).pixels.shape == (20, 40, 3)
    # other browsers may turn it, so the page gets a plain copy
    sent = picture_of(ImageRecord(1, str(path), 40, 20), None)
    with Image.open(io.BytesIO(sent.body)) as shown:
        assert (shown.size, shown.getexif().get(0x0112)) == ((40, 20), None)


def test_a_broken_exif_block_does_not_spoil_the_pixels(tmp_path: Path) -> None:
    corners().save(tmp_path / "image.png", exif=b"Exif\x00\x00nonsense")
    assert np.array_equal(read_image(tmp_path / "image.png"), np.asarray(corners()))


def test_working_size() -> None:
    assert working_size(1000, 500, 250, 10_000) == (500, 250)
    assert working_size(1000, 500, 250, 400) == (400, 200)
    assert working_size(500, 1000, 250, 400) == (200, 400)
    assert working_size(10, 5, 50, 100) == (100, 50)
    assert working_size(1000, 1, 10, 100) == (100, 1)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_has_working_size_and_knows_the_original(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif, path = Image.Exif(), tmp_path / f"image.{suffix}"
    exif[0x0112] = orientation
    corners((400, 200)).save(path, exif=exif, quality=95)
    width, height, _ = image_size(path)
    picture = read_picture(ImageRecord(1, str(path), width, height), 50, 1000)
    assert picture.pixels.shape == ((50, 100, 3) if orientation == 1 else (100, 50, 3))
    assert (picture.width, picture.height) == (width, height)
    red = picture.pixels[10, 10] if orientation == 1 else picture.pixels[10, 40]
    assert np.abs(red.astype(int) - RED).max() < 12


def test_shrinking_averages_instead_of_skipping_pixels(tmp_path: Path) -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "image.png")
    picture = read_picture(ImageRecord(1, str(tmp_path / "image.png"), 64, 64), 16, 16)
    assert np.abs(picture.pixels.astype(int) - 128).max() < 20


def test_a_jpeg_is_never_decoded_smaller_than_it_is_needed(tmp_path: Path) -> None:
    """At half size the edge between red and black stays within one pixel."""
    corners((400, 200)).save(tmp_path / "image.jpg", quality=95)
    row = read_picture(ImageRecord(1, str(tmp_path / "image.jpg"), 400, 200), 100, 200).pixels[20, :, 0]
    assert row[98] > 240
    assert row[101] < 15


def test_a_file_that_changed_its_size_is_refused(tmp_path: Path) -> None:
    corners().save(tmp_path / "image.png")
    with pytest.raises(UnreadableImage, match=r"image.png: it is 40 x 20 pixels now, but was 80 x 40"):
        read_picture(ImageRecord(1, str(tmp_path / "image.png"), 80, 40), 10, 10)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UnreadableImage, match=rf"cut\.{suffix}: .*\. Replace the file, or remove it"):
        read_image(path)
    with pytest.raises(UnreadableImage, match=rf"cut\.{suffix}"):
        read_picture(ImageRecord(1, str(path), 60, 60), 60, 60)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "the file is empty"), (b"not a picture", "not an image in a supported format")]
)
def test_a_file_that_is_not_an_image_is_reported(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "text.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"text\.jpg: .*{reason}"):
        image_size(tmp_path / "text.jpg")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.jpg: there is no such file"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("limit", [500, 300])  # 800 pixels: above the limit, and above twice the limit
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    corners().save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImage, match=rf"huge\.png: it has more than {limit} pixels\. Scale it down"):
        image_size(tmp_path / "huge.png")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "1"])
def test_strips_make_the_same_picture_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    dice = np.random.default_rng(0)
    path = tmp_path / "image.tif"
    if mode in ("I;16", "I", "F"):
        values = dice.integers(0, 60_000, (21, 13)).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        Image.fromarray(values * (7 if mode == "I" else 1)).save(path)
    else:
        colours = dice.integers(0, 256, (21, 13, 4), dtype=np.uint8)
        Image.fromarray(colours).convert("RGB" if mode in ("CMYK", "P") else mode).convert(mode).save(path)
    whole = read_image(path)
    monkeypatch.setattr(images, "STRIP", 20)
    assert np.array_equal(read_image(path), whole)
    picture = read_picture(ImageRecord(1, str(path), 13, 21), 6, 20)
    monkeypatch.undo()
    assert np.array_equal(read_picture(ImageRecord(1, str(path), 13, 21), 6, 20).pixels, picture.pixels)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_float_grey_without_numbers_is_refused(tmp_path: Path, value: float) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 1] = value
    Image.fromarray(values).save(tmp_path / "image.tif")
    with pytest.raises(UnreadableImage, match="not finite numbers"):
        read_image(tmp_path / "image.tif")


def test_a_small_file_of_many_deep_pixels_takes_little_memory_with_any_threads(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    del resource
    """In a quarter of the room, a picture of a quarter of the pixels."""
    Image.fromarray(np.full((4500, 4500), 300, np.uint16)).save(tmp_path / "deep.png")
    assert (tmp_path / "deep.png").stat().st_size < 75_000
    script = f"""if True:
        import resource
        from concurrent.futures import ThreadPoolExecutor
        from rarebox.data import images
        from rarebox.data.images import read_picture
        from rarebox.data.memory_limit import MemoryLimit
        from rarebox.types import ImageRecord
        images.DECODED = MemoryLimit(images.DECODED.size // 4)
        record = ImageRecord(1, {str(tmp_path / "deep.png")!r}, 4500, 4500)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with ThreadPoolExecutor(3) as threads:
            shades = [p.pixels.max() for p in threads.map(lambda _: read_picture(record, 100, 100), range(3))]
        assert set(shades) == {{1}}, shades
        unit = 1 if __import__("sys").platform == "darwin" else 1024
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / images.DECODED.size)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.1


def test_threads_share_the_room_for_decoded_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "image.png")
    monkeypatch.setattr(images, "DECODED", MemoryLimit(100 * 100 * 4 * 2))
    at_once, most, lock, convert = 0, 0, threading.Lock(), images._eight_bits

    def slow(image: Image.Image) -> Image.Image:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.02)
        with lock:
            at_once -= 1
        return convert(image)

    monkeypatch.setattr(images, "_eight_bits", slow)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read_image, [tmp_path / "image.png"] * 16))
    assert most == 2


@pytest.mark.parametrize("progressive", [False, True])
def test_the_coefficients_of_a_progressive_jpeg_count_at_full_size(
    progressive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its decoder keeps 2 bytes for each of 3 samples of a pixel, even if it decodes at an eighth of the size."""
    held = list[int]()

    class Recorded(MemoryLimit):
        def hold(self, wanted: int) -> Any:
            held.append(wanted)
            return super().hold(wanted)

    monkeypatch.setattr(images, "DECODED", Recorded(1 << 30))
    Image.new("RGB", (800, 640)).save(tmp_path / "image.jpg", progressive=progressive)
    read_image(tmp_path / "image.jpg")
    read_picture(ImageRecord(1, str(tmp_path / "image.jpg"), 800, 640), 80, 100)
    kept = 800 * 640 * 3 * 2 if progressive else 0
    assert held == [800 * 640 * 4 + kept, 100 * 80 * 4 + kept]


def test_a_request_for_more_than_all_memory_gets_all_of_it_alone() -> None:
    room, inside = MemoryLimit(10), threading.Event()
    with room.hold(10**9):
        other = threading.Thread(target=lambda: room.hold(1).__enter__() or inside.set())
        other.start()
        assert not inside.wait(0.05)
    assert inside.wait(5)
    other.join()


UNWANTED = ["EPS", "ICO", "ICNS", "TGA", "PCX", "SGI", "DDS"]


@pytest.mark.parametrize("kind", UNWANTED)
def test_a_photo_is_of_a_kind_that_the_docs_name_and_starts_no_other_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (32, 32)).save(path, format=kind)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    for read in (image_size, read_image):
        with pytest.raises(UnreadableImage, match="not an image in a supported format"):
            read(path)
    assert not (tmp_path / "started").exists()


def test_the_docs_name_the_kinds_that_are_read() -> None:
    said = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8").split("## Images")[1]
    named = {"JPEG2000": "JPEG 2000", "DIB": "BMP", "PPM": "PPM", "WEBP": "WebP"}
    for kind in images.FORMATS:
        assert named.get(kind, kind) in said.split("##")[0], kind


def test_the_error_crosses_a_process_border() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "cut off")))
    assert (str(error), error.path, error.reason) == (str(UnreadableImage("a.jpg", "cut off")), "a.jpg", "cut off")


def test_image_files_are_found_below_the_folder_in_order(tmp_path: Path) -> None:
    for name in ("b/z.JPG", "b/a.png", "c.jpeg", "notes.txt", "._c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in image_files(tmp_path)] == ["b/a.png", "b/z.JPG", "c.jpeg"]


# ------------------------------------------------------------------------------------------- folders of images


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)
    return path


def names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in image_files(folder)]


def test_links_to_folders_are_followed_and_each_photo_is_listed_once(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photo(photos / "a.jpg")
    photo(photos / "real" / "b.JPG")
    photo(tmp_path / "disk" / "deep" / "c.jpg")
    photo(tmp_path / "store" / "0123.jpg")
    (photos / "a-link-to-b.jpg").symlink_to("real/b.JPG")
    (photos / "cam1").symlink_to("../disk")
    (photos / "cam2").symlink_to("../disk")
    (photos / "again").symlink_to("real")
    (photos / "d.jpg").symlink_to("../store/0123.jpg")
    assert names(photos) == ["a.jpg", "cam1/deep/c.jpg", "d.jpg", "real/b.JPG"]


def test_circular_links_end(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photo(photos / "a.jpg")
    photo(tmp_path / "elsewhere.jpg")
    (photos / "up").symlink_to("..")
    (photos / "root").symlink_to("/")
    (photos / "here").symlink_to(".")
    (photos / "one.jpg").symlink_to("two.jpg")
    (photos / "two.jpg").symlink_to("one.jpg")
    assert names(photos) == ["a.jpg", "one.jpg", "two.jpg"]


def test_dead_links_and_closed_folders_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.jpg").symlink_to("/nowhere/c.jpg")
    (tmp_path / "cam1").symlink_to("/nowhere")
    (tmp_path / "notes.txt").symlink_to("/nowhere/notes.txt")
    (tmp_path / "closed").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    scandir = os.scandir

    def refuse(path: Path) -> Any:  # the tests may run as root, who can read every folder
        if Path(path).name == "closed":
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    assert names(tmp_path) == ["c.jpg", "cam1", "closed", "pipe.jpg"]
    for file, reason in zip(
        image_files(tmp_path), ("link to /nowhere/c.jpg", "link to /nowhere", "may not read", "no"), strict=True
    ):
        with pytest.raises(UnreadableImage, match=reason):
            image_size(file)


@pytest.mark.parametrize(
    "litter",
    [
        ".ipynb_checkpoints/a-checkpoint.jpg",
        ".thumbnails/a.jpg",
        "x/.cache/y/a.jpg",
        "._a.jpg",
        ".a.jpg",
        "__MACOSX/a.jpg",
        "@Recycle/a.jpg",
        "sub/@Recently-Snapshot/monday/a.jpg",
        "#snapshot/a.jpg",
        "$Recycle.Bin/a.jpg",
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
        "$RECYCLE.BIN/a.jpg",
    ],
)
def test_system_and_hidden_files_are_not_photos(tmp_path: Path, litter: str) -> None:
    folder = tmp_path / ".hidden itself"  # a hidden folder that is named explicitly is read
    photo(folder / "a.jpg")
    photo(folder / litter)
    (folder / ".linked").symlink_to(tmp_path)
    assert names(folder) == ["a.jpg"]
