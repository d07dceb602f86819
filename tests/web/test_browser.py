"""The page in a real browser, as a new user sees it: from a folder of photos to labels and a second cycle."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rarebox.data.datasets import load
from rarebox.data.images import image_size
from tests import tiny
from tests.browser import CHROMIUM, LAPTOP, PHONE, Person, chromium, rarebox, served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")

AQUARIUM = Path(os.environ.get("RAREBOX_AQUARIUM") or Path(__file__).parents[3] / "shared" / "data" / "aquarium")

SMALL = (
    "initial_images=5",
    "budget=[30]",
    "people.overlap=0",
    "detector.image_size=96",
    "training.steps=8",
    "training.epochs=0",
    "training.warmup_steps=0",
    "training.lr=0.003",
    "scoring.candidate_threshold=0.001",
    "device=cpu",
)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photos if available, else the embedded data set."""
    return AQUARIUM if AQUARIUM.exists() else tiny.make_data(tmp_path_factory.mktemp("scenes") / "scenes")


def test_from_a_folder_of_photos_to_labels_and_a_second_cycle(truth: Path, tmp_path: Path) -> None:
    known = load(truth)
    by_name = {Path(i.path).name: (i.width, i.height, known.train.truth[i.id]) for i in known.train.images}
    (photos := tmp_path / "photos").mkdir()
    for image in known.train.images[:40]:
        shutil.copy(image.path, photos)
    project, shots = tmp_path / "project", tmp_path / "shots"
    shots.mkdir()
    options = [part for change in SMALL for part in ("--set", change)]
    output = rarebox("init", project, "--images", photos, "--classes", ",".join(known.classes), *options).stderr
    assert "next: rarebox serve" in output

    with served(project) as link, chromium() as browser:
        page = browser.new_page(viewport=LAPTOP)  # type: ignore[arg-type]
        person = Person(page, shots)
        page.goto(link)
        page.evaluate("window.sameDocument = true")
        assert "token" not in page.url

        # Cold start: whole images.
        drawn = 0
        for number in range(5):
            person.task("image")
            width, height, objects = by_name[person.photo()]
            assert (width, height) == image_size(photos / person.photo())[:2]
            for box, label in list(zip(objects.boxes, objects.labels, strict=True))[:12]:
                person.press(f"{(label + 1) % 10}")  # 0 is the tenth
                person.drag(box, width, height)
                drawn += 1
            if number == 0:
                person.press("z", "y")
                person.shoot("1-whole-image")
            before = person.photo()
            person.press("Enter", *([] if len(objects) else ["Enter"]))
            page.wait_for_function(
                "name => document.querySelector('[data-fact=photo] b')?.innerText !== name", arg=before
            )
        person.saved()
        assert sum(entry["count"] for entry in person.state()["classes"]) == pytest.approx(drawn, abs=2)
        person.shoot("2-training")

        # The first cycle of boxes, by keyboard alone.
        person.task("box")
        person.shoot("3-box")
        keys = ["Enter", "x", "Space", "Enter", "2", "x"]
        for turn in range(29):
            person.task("box")
            person.press(keys[turn % len(keys)])
        person.task("box")
        person.saved()
        assert person.state()["budget"]["spent"] == 29

        # Undo takes back an answer.
        question = person.see("question").inner_text()
        person.press("z")
        person.saved()
        person.until(lambda state: state["budget"]["spent"] == 28)
        person.press("x")
        person.saved()
        person.task("box")
        assert person.see("question").inner_text() == question

        # An object that the detector missed. It counts as an answer of this cycle.
        width, height, _ = by_name[person.photo()]
        labels = sum(entry["count"] for entry in person.state()["classes"])
        page.keyboard.press("f")
        person.press("d")
        person.drag((0.05 * width, 0.05 * height, 0.2 * width, 0.2 * height), width, height)
        person.press("1")  # its class, which also deselects it
        person.saved()
        assert sum(entry["count"] for entry in person.state()["classes"]) == labels + 1
        assert person.state()["budget"]["spent"] == 30
        person.shoot("4-missed-object")

        # The budget is spent. The second cycle starts without a reload.
        person.task("box")
        person.press("x")
        person.until(lambda state: state["cycle"] == 3, seconds=400)
        person.task("box")
        assert page.evaluate("window.sameDocument") is True
        person.shoot("5-second-cycle")
        person.press("Enter")
        person.saved()
        person.press("?")
        person.shoot("6-keys")
        person.press("Escape")
        person.press("g")  # immediately: the late close event of one dialog must not empty the next
        person.see("gallery-item").first.wait_for()
        person.shoot("7-gallery")
        person.press("Escape")
        final = person.state()
        assert [record["cycle"] for record in final["records"]] == [1, 2]

        # The same on a phone, by touch.
        phone = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)  # type: ignore[arg-type]
        handy = Person(phone.new_page(), shots)
        handy.page.goto(
            page.evaluate(
                "fetch('/api/invite', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'})"
                ".then(a => a.json()).then(a => a.url)"
            )
        )
        handy.see("name").fill("ben")
        handy.shoot("8-phone-name")
        handy.press("Enter")
        handy.task("box")
        handy.shoot("9-phone-box")
        handy.see("not_object").tap()
        handy.saved()
        assert {one["name"] for one in handy.state()["people"]} >= {"ben"}
        assert person.problems == handy.problems == []

    # Everything that the page reported as saved is in the export.
    done = rarebox("export", project, tmp_path / "labels", "--json").stdout
    assert json.loads(done)["boxes"] == sum(entry["count"] for entry in final["classes"])
