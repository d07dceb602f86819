"""Small valid files of every kind that rarebox reads, and ways to corrupt them."""

import copy
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from rarebox import config, external
from rarebox.core import parquet
from rarebox.data import cvat, datasets, labelstudio, listings, remote
from rarebox.data.images import FORMATS, image_size, read_image, read_picture
from rarebox.data.review import Batch
from rarebox.grid import spec
from rarebox.grid.results import read
from rarebox.labels.store import Store
from rarebox.loop.run_folder import open_store
from rarebox.pool.ranking import LazyRanking
from rarebox.project import predictions
from rarebox.project.create import create
from rarebox.project.exchange.importing import bring_in
from rarebox.project.project import Project
from rarebox.report import reading
from rarebox.types import Candidates, ImageRecord, Query

CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Reader:
    """A reader of files: which files in its folder may be corrupted, and how it is called.

    ``make`` fills a new folder, which is shared: ``read`` writes nothing into it.
    """

    make: Callable[[Path], None]
    spoilt: Sequence[str]
    read: Callable[[Path], Any]


def photos(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (20, 10), (90, 120, 30)).save(folder / name)


def put(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


# ------------------------------------------------------------------------------------------- data sets


def use(found: listings.Dataset) -> None:
    """A data set goes to a store, its problems to a file and a terminal."""
    for problem in found.problems:
        json.dumps(asdict(problem)).encode()
        f"{problem.where}: {problem.what}".encode()
    with Store(":memory:", classes=found.classes) as store:
        store.add_images(found.train.images)


def load(folder: Path) -> None:
    use(datasets.load(folder))


def coco_content() -> dict[str, Any]:
    return {
        "info": {"year": 2026},
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}],
        "images": [
            {"id": 1, "file_name": "a.png", "width": 20, "height": 10, "attributes": {"complete": True}},
            {"id": 2, "file_name": "b.png", "width": 20, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 6], "area": 48, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [3.5, 2, 8, 6], "attributes": {"source": "human"}},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [3, 1, 4, 4], "segmentation": [[1, 2, 3, 4, 5, 6]]},
        ],
    }


def make_coco(folder: Path) -> None:
    photos(folder / "images", "a.png", "b.png")
    put(folder / "train.json", coco_content())
    put(folder / "test.json", coco_content())


def voc_label(name: str) -> str:
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    item = f"<object><name>{name}</name><difficult>0</difficult><truncated>0</truncated>{box}</object>"
    size = "<size><width>20</width><height>10</height><depth>3</depth></size>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotation><filename>a.png</filename>{size}{item}</annotation>\n'


def make_voc(folder: Path) -> None:
    photos(folder / "JPEGImages", "a.png", "b.png")
    put(folder / "Annotations" / "a.xml", voc_label("cat"))
    put(folder / "Annotations" / "b.xml", voc_label("dog"))
    put(folder / "ImageSets" / "Main" / "trainval.txt", "a\nb\n")
    put(folder / "rarebox.json", {"format": "voc", "classes": ["dog", "cat"], "images": {}, "files": ["a"]})


def make_yolo(folder: Path) -> None:
    photos(folder / "images", "a.png", "b.png")
    put(folder / "labels" / "a.txt", "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.4 0.1 0.4 0.4\n")
    put(folder / "labels" / "b.txt", "1 0.5 0.5 0.25 0.5\n")
    put(folder / "list.txt", "images/a.png\n./images/b.png\n")
    put(folder / "data.yaml", "path: .\ntrain: images\nval: list.txt\nnc: 2\nnames:\n  0: cat\n  1: dog\n")


# ------------------------------------------------------------------------------------------- imports from tools


def make_store(folder: Path) -> None:
    """A project of two photos with three open questions."""
    photos(folder / "photos", "a.png", "b.png")
    create(folder / "project", folder / "photos", CLASSES, changes={"detector.image_size": 64})
    with open_store(folder / "project") as store:
        store.open_cycle(2)
        store.ask(
            2,
            [
                Query(image, np.array(box), guess, 0.5, {"score": 0.5})
                for image, box, guess in ((1, [1, 1, 9, 9], 0), (1, [10, 1, 19, 9], 1), (2, [2, 2, 8, 8], 0))
            ],
        )


def take(folder: Path, batch: Batch, source: str) -> None:
    """Import into the store and undo it, because the folder is shared."""

    class Undo(Exception):
        pass

    with open_store(folder / "project") as store:
        try:
            with store.transaction(writes=True):
                bring_in(store, batch, source)
                raise Undo
        except Undo:
            pass


def region(number: int, x: float) -> dict[str, Any]:
    place = {"x": x, "y": 10.0, "width": 40.0, "height": 80.0, "rotation": 0}
    sizes = {"original_width": 20, "original_height": 10, "image_rotation": 0}
    key = f"query-{number}" if number else "x8Yk"
    value = {**place, "rectanglelabels": ["cat"]}
    return {"id": key, "type": "rectanglelabels", "from_name": "label", "to_name": "image", **sizes, "value": value}


def label_studio_task() -> dict[str, Any]:
    annotation = {
        "id": 30,
        "completed_by": {"id": 1, "email": "a@b.c"},
        "result": [region(1, 5), region(0, 50)],
        "was_cancelled": False,
        "updated_at": "2026-11-23T18:00:09.000000Z",
        "lead_time": 9.0,
        "parent_prediction": 7,
        "prediction": {"id": 7, "result": [region(1, 5), region(2, 50)]},
    }
    about = {"image_id": 1, "rank": 1, "queries": [1, 2], "complete": False}
    return {
        "id": 1,
        "data": {"image": "/data/local-files/?d=out/images/a.png", "rarebox": about},
        "annotations": [annotation],
    }


def make_label_studio(folder: Path) -> None:
    make_store(folder)
    put(folder / "full.json", [label_studio_task()])


def read_label_studio(name: str) -> Callable[[Path], None]:
    return lambda folder: take(folder, labelstudio.read(folder / name), "labelstudio")


def make_cvat(folder: Path) -> None:
    make_store(folder)
    box = (
        '<box label="cat" source="manual" occluded="0" xtl="{}" ytl="1.00" xbr="{}" ybr="9.00" z_order="0">'
        '<attribute name="query">{}</attribute></box>'
    )
    tag = '<tag label="rarebox" source="auto"><attribute name="queries">1 2</attribute></tag>'
    owner = "<owner><username>anna</username></owner>"
    image = f'<image id="0" name="a.png" width="20" height="10">{box.format(1, 9, 1)}{box.format(10, 19, "new")}{tag}'
    put(
        folder / "annotations.xml",
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task>{owner}</task></meta>'
        f"{image}</image></annotations>\n",
    )


# ------------------------------------------------------------------------------------------- another detector's boxes


def make_detections(folder: Path) -> None:
    photos(folder / "photos", "a.png", "b.png")
    make_coco(folder)
    vectors = [[0.1, 0.7, 0.2], [0.3, 0.1, 0.6]]
    lines = [
        {"classes": ["cat", "dog"], "background": "first"},
        {
            "image": "a.png",
            "width": 20,
            "height": 10,
            "boxes": [[1, 1, 9, 9], [3, 3, 19, 9]],
            "scores": [0.7, 0.6],
            "labels": ["cat", 1],
            "class_probs": vectors,
        },
        {"image": "b.png", "boxes": [[1, 1, 9, 9]], "class_probs": [vectors[0]], "labels": [0], "scores": [0.7]},
    ]
    put(folder / "lines.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    results = [
        {"image_id": n, "category_id": c, "bbox": [1, 1, 8, 7.5], "score": 0.4} for n, c in ((1, 1), (2, 2), (1, 2))
    ]
    put(folder / "results.json", results)
    maps = {"flip": [[-1, 0, 20], [0, 1, 0]], "cutout": [[1, 0, 0], [0, 1, 0]]}
    copies = [
        {
            "image": f"images/{name}.{view}.png",
            "boxes": [[1, 1, 9, 9]],
            "scores": [0.6],
            "labels": [0],
            "class_probs": [vectors[0]],
        }
        for name in ("a.png", "b.png")
        for view in maps
    ]
    put(folder / "views.jsonl", "".join(json.dumps(line) + "\n" for line in copies))
    entries = [
        {
            "file": f"images/{name}.{view}.png",
            "image": name,
            "view": view,
            "width": 20,
            "height": 10,
            "matrix": matrix,
            "inverse": matrix,
            "patches": [[1, 1, 3, 3]],
            "seed": 0,
        }
        for name in ("a.png", "b.png")
        for view, matrix in maps.items()
    ]
    put(folder / "map.jsonl", "".join(json.dumps(line) + "\n" for line in entries))


def rank(folder: Path, *names: str | None, strategy: str = "class_balanced") -> None:
    found, views, views_map, labels, images = (folder / name if name else None for name in names)
    assert found is not None
    settings = config.resolve("laptop", None, {"selection.strategy": strategy})
    ranked = external.rank(found, views, labels, images, settings, 5, views_map=views_map)
    from rarebox.data import ranked as lists
    from rarebox.data.review import sheets

    shown = sheets([(record, record.path) for record in ranked.images.values()], ranked.queries)
    lists.as_csv(ranked.images, ranked.classes, ranked.queries).encode()
    lists.as_coco(ranked.images, ranked.classes, ranked.queries).encode()
    if all(record.width for record in ranked.images.values()):
        labelstudio.tasks(shown, ranked.classes, "")
    labelstudio.config(ranked.classes)


# ------------------------------------------------------------------------------------------- our own files


def make_project(folder: Path) -> None:
    make_store(folder)
    (folder / "home").mkdir()
    now = Project(folder / "project")
    u, boxes = np.array([0.9, 0.8]), np.array([[1, 1, 9, 9], [2, 2, 8, 8]], dtype=np.float32)
    found = Candidates(
        np.array([1, 2]), np.arange(2), boxes, np.array([0, 1]), np.array([0.5, 0.6]), u, u, np.zeros((2, 0))
    )
    now.folder.cycle(2).mkdir()
    now.write_ranking(2, LazyRanking.of(found, enumerate(u.tolist())), np.array([0.5, 0.5]), np.array([1, 1]))
    predictions.write(
        predictions.place_of(now.folder.root, "sam"),
        predictions.as_candidates(np.array([1]), boxes[:1], np.array([0]), np.array([0.5])),
    )
    now.store.close()


def read_project(folder: Path) -> None:
    now = Project(folder / "project")
    try:
        now.read_ranking(2)
        now.read_predictions()
    finally:
        now.store.close()


def record_of_a_cycle(number: int) -> dict[str, Any]:
    per = dict.fromkeys(CLASSES, 3)
    return {
        "cycle": number,
        "labels": 6,
        "reviews": 8,
        "ap50": 0.25,
        "ap50_11": 0.24,
        "seconds": {"train": 1.5},
        "per_class_ap50": {"cat": 0.25, "dog": None},
        "human_per_class": per,
        "selected_per_class": per,
        "hits_per_class": per,
        "notes": [],
        **dict.fromkeys(
            ("candidates_per_class", "uncertainty_would_select", "labels_per_class", "pseudo_per_class"), per
        ),
        **dict.fromkeys(("class_frequency", "sure_per_class"), per),
        **dict.fromkeys(("coco_ap", "coco_ap50", "coco_ap75", "imbalance_factor"), 0.2),
        **dict.fromkeys(("labels_this_cycle", "reviews_this_cycle", "hits", "images_full", "images_partial"), 3),
        "pseudo_boxes": 2,
    }


def make_run(folder: Path) -> None:
    put(folder / "settings.yaml", config.dump(config.resolve()))
    put(folder / "metrics.json", [record_of_a_cycle(1), record_of_a_cycle(2)])
    put(folder / "problems.json", [{"kind": "box clipped", "where": "a.json", "what": "it was cut"}])
    put(folder / "environment.json", {"python": "3.11", "threads": 2})
    line = {
        "data": "scenes",
        "detector": "retinanet",
        "method": "U",
        "seed": 0,
        "budget": [6],
        "status": "done",
        "settings": config.resolve().model_dump(mode="json"),
        "cycles": [record_of_a_cycle(1), record_of_a_cycle(2)],
    }
    put(folder / "results.jsonl", "".join(json.dumps({**line, "seed": seed}) + "\n" for seed in range(2)))


def read_run(folder: Path) -> None:
    reading.read_runs([folder])


def make_grid(folder: Path) -> None:
    put(
        folder / "grid.yaml",
        "preset: laptop\nsettings: {training.steps: 6}\ndata: {scenes: {data: scenes}}\ndetector: [retinanet]\n"
        "methods:\n  U: &u {selection.strategy: uncertainty, pseudo.method: none}\n  V: *u\n"
        "budgets: [[60, 120], [30]]\nseeds: 2\nfull: 1\n",
    )


def make_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in FORMATS:
        options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
        Image.fromarray(noise).save(folder / f"{kind}.jpg", format=kind, **options)
    Image.fromarray(noise[..., 0].astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(noise).convert("RGBA").save(folder / "clear.png")
    Image.fromarray(noise).convert("P").save(folder / "palette.png", transparency=3)


def read_pictures(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        width, height, _ = image_size(file)
        read_image(file)
        read_picture(ImageRecord(1, str(file), width, height), 8, 16)


def make_list(folder: Path) -> None:
    photos(folder, "a.png", "b.png")
    put(folder / "list.txt", "# photos\na.png\n./b.png\ns3://bucket/a.png\n")


def read_changes(folder: Path) -> None:
    text = (folder / "changes.txt").read_text(encoding="utf-8", errors="replace")
    config.resolve("laptop", None, config.parse_changes(text.splitlines()))


READERS: Mapping[str, Reader] = {
    "coco": Reader(make_coco, ["train.json", "test.json"], load),
    "voc": Reader(
        make_voc, ["Annotations/a.xml", "Annotations/b.xml", "ImageSets/Main/trainval.txt", "rarebox.json"], load
    ),
    "yolo": Reader(make_yolo, ["data.yaml", "labels/a.txt", "list.txt"], load),
    "label studio": Reader(make_label_studio, ["full.json"], read_label_studio("full.json")),
    "cvat": Reader(
        make_cvat, ["annotations.xml"], lambda folder: take(folder, cvat.read(folder / "annotations.xml"), "cvat")
    ),
    "detections": Reader(
        make_detections, ["lines.jsonl"], lambda folder: rank(folder, "lines.jsonl", None, None, None, "photos")
    ),
    "detections alone": Reader(
        make_detections,
        ["lines.jsonl"],
        lambda folder: rank(folder, "lines.jsonl", None, None, None, None, strategy="entropy"),
    ),
    "detections, labels": Reader(
        make_detections,
        ["train.json", "test.json"],
        lambda folder: rank(folder, "lines.jsonl", None, None, "train.json", "test.json"),
    ),
    "detections, views": Reader(
        make_detections,
        ["views.jsonl", "map.jsonl"],
        lambda folder: rank(folder, "lines.jsonl", "views.jsonl", "map.jsonl", None, "photos"),
    ),
    "results": Reader(
        make_detections, ["results.json"], lambda folder: rank(folder, "results.json", None, None, "train.json", None)
    ),
    "results alone": Reader(
        make_detections, ["results.json"], lambda folder: rank(folder, "results.json", None, None, None, None)
    ),
    "settings": Reader(make_run, ["settings.yaml"], lambda folder: config.resolve("laptop", folder / "settings.yaml")),
    "changes": Reader(
        lambda folder: put(folder / "changes.txt", "budget=[3, 4]\ntraining.lr=1e-3\nscoring.views=[flip]\n"),
        ["changes.txt"],
        read_changes,
    ),
    "grid": Reader(make_grid, ["grid.yaml"], lambda folder: spec.read(folder / "grid.yaml", {})),
    "project": Reader(
        make_project,
        [
            "project/settings.yaml",
            "project/cycle_02/ranking.json",
            "project/cycle_02/ranking.parquet",
            "project/predictions/sam.parquet",
        ],
        read_project,
    ),
    "run": Reader(make_run, ["settings.yaml", "metrics.json", "problems.json", "environment.json"], read_run),
    "grid results": Reader(make_run, ["results.jsonl"], lambda folder: read([folder / "results.jsonl"])),
    "pictures": Reader(make_pictures, ["*"], read_pictures),
    "list": Reader(
        make_list, ["list.txt"], lambda folder: remote.listing(str(folder / "list.txt"), frozenset({".png"}))
    ),
}


# ------------------------------------------------------------------------------------------- corruption

NUMBERS: Sequence[Any] = (
    0,
    -1,
    1,
    2,
    3,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**53,
    2**63,
    2**64,
    -(2**63) - 1,
    10**30,
    10**400,
)
TEXTS: Sequence[Any] = (
    "",
    " ",
    "a",
    "cat",
    "1",
    "-1",
    "1e999",
    "nan",
    "inf",
    "0x10",
    "a.png",
    "../a.png",
    "\ud800",
    "a\x00b",
    "a\nb",
    "a\x1b[2J",
    "\u2028",
    "\ufeff",
    "file:///etc/passwd",
    "http://127.0.0.1:1/a.png",
    "http://[",
    "C:\\a.png",
    "/nowhere",
    ".",
    "..",
    "x" * 5000,
    "query-1",
    "query-99999999999999999999",
    "٣",
    "²",
)
STRANGE: Sequence[Any] = (
    *NUMBERS,
    *TEXTS,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    [1, 2, 3, 4],
    [0.1] * 5,
    ["a", 1],
    {"id": 1},
    [[1, 2], [3]],
)

WORDS: Sequence[bytes] = (
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"1" * 5000,
    b'"\\ud800"',
    b'""',
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b"<",
    b">",
    b"&",
    b"&#0;",
    b"&x;",
    b"<!--",
    b"]]>",
    b"*",
    b"&a ",
    b"*a",
    b"!!int ",
    b"!!binary ",
    b"!!timestamp ",
    b"!!float ",
    b"!!bool ",
    b"!!set ",
    b"!!omap ",
    b"!!pairs ",
    b"!x ",
    b"!!python/name:os.system ",
    b"? ",
    b"- ",
    b": ",
    b"|",
    b"%",
    b"@",
    b"`",
    b"\t",
    b"2024-99-99",
    b"1:1:1",
    b"0o9",
    b"0x" + b"f" * 5000,
    b"<<: ",
    b"[" * 3000,
    b"{" * 3000,
    b'[{"a":' * 2000,
    b"<a>" * 3000,
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\x1b[2J",
    b"../",
    b"..\\",
    b"::",
    b"://",
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in nested lists and dictionaries: the container, and the key or index in it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in list(pairs):
        found += [(value, key), *places(inner)]
    return found


def spoil_value(value: Any, dice: random.Random) -> Any:
    """A nested value, corrupted in one to three places."""
    value = [copy.deepcopy(value)]
    for _ in range(dice.choice((1, 1, 2, 3))):
        container, key = dice.choice(places(value))
        match dice.randrange(6):
            case 0 if container is not value:
                del container[key]
            case 1:
                container[key] = [container[key]]
            case 2 if isinstance(container, list) and container is not value:
                container.append(copy.deepcopy(container[key]))
            case 3:
                container[key] = copy.deepcopy(dice.choice(places(value))[0])
            case 4 if isinstance(container, dict):
                container[dice.choice(["", "id", "image", "a", "\ud800", "x.y"])] = container.pop(key)
            case _:
                container[key] = copy.deepcopy(dice.choice(STRANGE))
        if not places(value):
            break
    return value[0] if value else None


def spoil_bytes(content: bytes, dice: random.Random) -> bytes:
    """A text or picture, corrupted in one to four places."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4))):
        place = dice.randrange(len(changed) + 1)
        match dice.randrange(6):
            case 0 if changed:
                changed[min(place, len(changed) - 1)] ^= 1 << dice.randrange(8)
            case 1:
                del changed[place : place + dice.choice((1, 2, 5, 20, 1000))]
            case 2:
                changed[place:place] = dice.choice(WORDS)
            case 3:
                other = dice.randrange(len(changed) + 1)
                changed[place:place] = changed[other : other + dice.choice((1, 5, 50))]
            case 4:  # a number or word replaced by another
                found = [*re.finditer(rb"[\w.+-]+", bytes(changed))]
                if found:
                    hit = dice.choice(found)
                    changed[hit.start() : hit.end()] = dice.choice(WORDS)
            case _ if changed:
                changed[min(place, len(changed) - 1)] = dice.randrange(256)
    return bytes(changed)


def spoil(file: Path, content: bytes, dice: random.Random) -> bytes:
    """A file's content, corrupted as a nested value if it is one, else byte by byte."""
    if dice.random() < 0.6:
        if file.suffix == ".json":
            return json.dumps(spoil_value(json.loads(content), dice)).encode()
        if file.suffix == ".jsonl":
            lines = spoil_value([json.loads(line) for line in content.splitlines()], dice)
            return b"".join(
                json.dumps(line).encode() + b"\n" for line in (lines if isinstance(lines, list) else [lines])
            )
        if file.suffix == ".yaml":
            try:
                return yaml.safe_dump(spoil_value(yaml.safe_load(content), dice)).encode()
            except (UnicodeEncodeError, yaml.YAMLError):
                return b""
        if file.suffix == ".parquet":
            return spoil_table(file, content, dice)
    return spoil_bytes(content, dice)


def spoil_table(file: Path, content: bytes, dice: random.Random) -> bytes:
    """A table with a column missing, of another type, or with other values."""
    other = file.with_suffix(".spoilt")
    other.write_bytes(content)
    columns = parquet.read(other)
    name = dice.choice(list(columns))
    match dice.randrange(4):
        case 0:
            del columns[name]
        case 1:
            columns[name] = columns[name].astype(np.float64) * dice.choice([np.nan, -1e30, 0.5])
        case 2:
            columns[name] = columns[name].astype(str) if columns[name].ndim == 1 else columns[name][:, :3].copy()
        case _:
            columns[name] = np.full_like(columns[name], dice.choice([99, 0]))
    parquet.write(other, columns)
    spoilt = other.read_bytes()
    other.unlink()
    return spoilt
