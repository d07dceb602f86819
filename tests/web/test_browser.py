"""The page in a real browser, as a new user sees it: from a folder of photos to labels and a second cycle."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rarebox.data import scenes
from rarebox.data.datasets import load
from rarebox.data.images import image_size
from rarebox.data.listings import Dataset
from rarebox.web import wording
from tests.browser import CHROMIUM, LAPTOP, Person, chromium, rarebox, served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")

AQUARIUM = Path(os.environ.get("RAREBOX_AQUARIUM") or Path(__file__).parents[3] / "shared" / "data" / "aquarium")

SMALL = (
    "initial_images=5",
    "budget=[30]",
    "people.overlap=0",
    "selection.exploration=0",
    "detector.image_size=96",
    "training.steps=8",
    "training.epochs=0",
    "training.warmup_steps=0",
    "training.lr=0.003",
    "scoring.views=[flip]",
    "scoring.candidate_threshold=0.001",
    "device=cpu",
)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photos if available, else the embedded data set."""
    if AQUARIUM.exists():
        return AQUARIUM
    # Enough that some are left when the trainer has chosen the initial images, on a slow machine too.
    return scenes.make(tmp_path_factory.mktemp("scenes") / "scenes", seed=3, train=40, test=5, size=(96, 96))


@pytest.mark.slow
def test_from_a_folder_of_photos_to_labels_and_a_second_cycle(truth: Path, tmp_path: Path) -> None:
    known = load(truth)
    (photos := tmp_path / "photos").mkdir()
    for image in known.train.images[:40]:
        shutil.copy(image.path, photos)
    project, shots = tmp_path / "project", tmp_path / "shots"
    shots.mkdir()
    options = [part for change in SMALL for part in ("--set", change)]
    output = rarebox("init", project, "--images", photos, "--classes", ",".join(known.classes), *options).stderr
    assert "next: rarebox serve" in output

    with served(project) as link, chromium() as browser:
        person = Person(browser.new_page(viewport=LAPTOP), shots)  # type: ignore[arg-type]
        person.page.goto(link)
        person.page.evaluate("window.sameDocument = true")
        assert "token" not in person.page.url
        box_the_initial_images(person, known, photos)
        answer_the_first_questions(person)
        person.until(lambda state: state["cycle"] == 3, seconds=400)
        person.task("box")
        assert person.page.evaluate("window.sameDocument") is True  # the second cycle started without a reload
        person.shoot("4-second-cycle")
        person.press("Enter")
        person.saved()
        final = person.state()
        assert [record["cycle"] for record in final["records"]] == [1, 2]
        assert person.problems == []

    # Everything that the page reported as saved is in the export.
    done = rarebox("export", project, tmp_path / "labels", "--json").stdout
    assert json.loads(done)["boxes"] == sum(entry["count"] for entry in final["classes"])


def box_the_initial_images(person: Person, known: Dataset, photos: Path) -> None:
    """Draw the true boxes, at most twelve on an image. While the images are chosen, random ones are asked about."""
    by_name = {Path(i.path).name: (i.width, i.height, known.train.truth[i.id]) for i in known.train.images}
    drawn = number = 0
    while an_initial_image_is_shown(person):
        width, height, objects = by_name[person.photo()]
        assert (width, height) == image_size(photos / person.photo())[:2]
        for box, label in list(zip(objects.boxes, objects.labels, strict=True))[:12]:
            person.press(f"{(label + 1) % 10}")  # 0 is the tenth
            person.drag(box, width, height)
            drawn += 1
        if number == 0:
            person.press("z", "y")
            person.shoot("1-whole-image")
        before, number = person.photo(), number + 1
        person.press("Enter", *([] if len(objects) else ["Enter"]))
        person.page.wait_for_function(
            "name => document.querySelector('[data-fact=photo] b')?.innerText !== name", arg=before
        )
        person.saved()
    # A drag that begins on the handle of a box moves that box.
    assert sum(entry["count"] for entry in person.state()["classes"]) == pytest.approx(drawn, rel=0.1)
    person.shoot("2-training")


def an_initial_image_is_shown(person: Person) -> bool:
    """Wait for a question. False once the training has begun or is over."""
    person.page.wait_for_function(
        "() => ['image', 'box'].includes(document.body.dataset.task) && document.querySelector('#waiting').hidden",
        timeout=400_000,
    )
    whole = person.page.evaluate("() => document.body.dataset.task") == "image"
    return whole and wording.FURTHER_IMAGE not in person.page.locator("#reason").inner_text()


def answer_the_first_questions(person: Person) -> None:
    """Spend the budget of the first cycle by keyboard alone, and undo one answer in between."""
    keys = ["Enter", "x", "Space", "Enter", "2", "x"]
    for turn in range(29):
        person.task("box")
        person.press(keys[turn % len(keys)])
    person.task("box")
    person.saved()
    assert person.state()["budget"]["spent"] == 29
    person.shoot("3-box")
    question = person.see("question").inner_text()
    person.press("z")
    person.saved()
    person.until(lambda state: state["budget"]["spent"] == 28)
    person.press("x")
    person.saved()
    person.task("box")
    assert person.see("question").inner_text() == question
    person.press("x")
