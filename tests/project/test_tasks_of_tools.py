"""Several tasks and jobs of a tool about one photo: each speaks only for itself, and for its own annotator."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rarebox.data import cvat, labelstudio
from rarebox.errors import UserError
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.project.exchange.importing import Imported, bring_in
from rarebox.types import Answer, ImageRecord, Verdict

CAT, DOG = ("cat", 10), ("dog", 100)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "labels.sqlite", classes=("cat", "dog")) as made:
        made.add_images([ImageRecord(n, f"/photos/img_{n}.png", 200, 100) for n in (1, 2)])
        yield made


def boxes(store: Store) -> list[float]:
    """The left edges of the labels of the first image."""
    return sorted(store.labels_of(1).boxes[:, 0].tolist())


def from_cvat(folder: Path, store: Store, meta: str, *images: tuple[str, str, list[tuple[str, int]]]) -> Imported:
    """Import a CVAT file of images: name, attributes, and the class and left edge of each box."""
    shown = "".join(
        f'<image id="{n}" name="{name}" width="200" height="100" {attributes}>'
        + "".join(f'<box label="{c}" xtl="{x}" ytl="10" xbr="{x + 40}" ybr="50" occluded="0"/>' for c, x in drawn)
        + "</image>"
        for n, (name, attributes, drawn) in enumerate(images)
    )
    (folder / "a.xml").write_text(f"<annotations><meta>{meta}</meta>{shown}</annotations>")
    return bring_in(store, cvat.read(folder / "a.xml"), "cvat")


def about(kind: str, number: int, person: str = "Ann") -> str:
    people = f"<owner><username>boss</username></owner><assignee><username>{person}</username></assignee>"
    return f"<{kind}><id>{number}</id><name>{kind} {number}</name>{people}</{kind}>"


@pytest.mark.parametrize("kinds", [("task", "task"), ("job", "job"), ("task", "job"), ("job", "task")])
def test_the_file_of_a_job_or_task_withdraws_no_box_of_another(
    kinds: tuple[str, str], tmp_path: Path, store: Store
) -> None:
    first, second = about(kinds[0], 7), about(kinds[1], 8 if kinds[0] == kinds[1] else 7)
    assert from_cvat(tmp_path, store, first, ("img_1.png", "", [CAT])) == Imported(missed=1)
    assert from_cvat(tmp_path, store, second, ("img_1.png", "", [DOG])) == Imported(missed=1)
    assert from_cvat(tmp_path, store, first, ("img_1.png", "", [CAT])) == Imported(unchanged=1)
    assert boxes(store) == [10, 100]
    assert from_cvat(tmp_path, store, second, ("img_1.png", "", [])) == Imported(withdrawn=1)
    assert boxes(store) == [10]


def test_each_task_of_a_project_has_its_own_annotator(tmp_path: Path, store: Store) -> None:
    project = f"<project><id>3</id><tasks>{about('task', 7)}{about('task', 8, 'Bob')}</tasks></project>"
    both = (("img_1.png", 'task_id="7"', [CAT]), ("img_2.png", 'task_id="8"', [DOG]))
    assert from_cvat(tmp_path, store, project, *both) == Imported(missed=2)
    assert [query.asked_by for query in store.queries()] == ["Ann", "Bob"]
    moved = [("dog", 104)]
    assert from_cvat(tmp_path, store, about("task", 8, "Bob"), ("img_2.png", "", moved)) == Imported(missed=1)
    assert store.labels_of(2).boxes[:, 0].tolist() == [104]


def test_two_tasks_of_one_file_about_a_photo_are_both_taken(tmp_path: Path, store: Store) -> None:
    project = f"<project><tasks>{about('task', 7)}{about('task', 8, 'Bob')}</tasks></project>"
    both = (("img_1.png", 'task_id="7"', [CAT]), ("img_1.png", 'task_id="8"', [CAT, DOG]))
    assert from_cvat(tmp_path, store, project, *both) == Imported(missed=2, unchanged=1)
    assert from_cvat(tmp_path, store, project, *both) == Imported(unchanged=3)
    assert boxes(store) == [10, 100]


def from_label_studio(folder: Path, store: Store, *tasks: tuple[int, str, int]) -> Imported:
    """Import a file of tasks about the first image: number, when it was made, and the left edge of its only box."""
    listed = [
        {
            "id": number,
            "project": 1,
            "created_at": made,
            "data": {"image": f"/data/upload/1/{number:08x}-img_1.png"},
            "annotations": [{"id": 1, "completed_by": 1, "result": [region(str(left), left)]}],
        }
        for number, made, left in tasks
    ]
    (folder / "x.json").write_text(json.dumps(listed))
    return bring_in(store, labelstudio.read(folder / "x.json"), "labelstudio")


def region(key: str, left: int) -> dict[str, object]:
    value = {"x": left / 2, "y": 10, "width": 20, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    return {"id": key, "type": "rectanglelabels", "original_width": 200, "original_height": 100, "value": value}


def test_task_1_of_another_server_withdraws_nothing(tmp_path: Path, store: Store) -> None:
    ann, bob = (1, "2024-01-02T03:04:05.678901Z", 10), (1, "2024-01-02T09:08:07.654321Z", 100)
    for task in (ann, bob):
        assert from_label_studio(tmp_path, store, task) == Imported(missed=1)
    assert from_label_studio(tmp_path, store, ann) == Imported(unchanged=1)
    assert boxes(store) == [10, 100]
    # The same task, in another time zone.
    assert from_label_studio(tmp_path, store, (1, "2024-01-02T04:04:05.678901+01:00", 150)).withdrawn == 1
    assert boxes(store) == [100, 150]


def test_two_tasks_of_label_studio_about_a_photo_are_both_taken(tmp_path: Path, store: Store) -> None:
    made = "2024-01-02T03:04:05Z"
    assert from_label_studio(tmp_path, store, (1, made, 10), (2, made, 100)) == Imported(missed=2)
    assert boxes(store) == [10, 100]
    with pytest.raises(UserError, match="Keep one of the two in the file"):
        from_label_studio(tmp_path, store, (1, made, 10), (1, made, 100))


A, B = about("job", 7), about("job", 8, "Bob")
NEAR = ("cat", 12)
EMPTY = '<image id="0" name="img_1.png" width="200" height="100"/>'


@pytest.mark.parametrize("second", [B, about("job", 8)])
@pytest.mark.parametrize("theirs", [CAT, NEAR])
def test_a_box_that_two_jobs_drew_stays_until_both_have_deleted_it(
    second: str, theirs: tuple[str, int], tmp_path: Path, store: Store
) -> None:
    def job(meta: str, *drawn: tuple[str, int]) -> Imported:
        return from_cvat(tmp_path, store, meta, ("img_1.png", "", list(drawn)))

    job(A, CAT)
    known = job(second, theirs)
    assert known.missed == (theirs is NEAR and second is not B)  # the same person has moved it
    for _ in range(2):
        before = boxes(store), len(store.queries())
        job(second, theirs)
        assert (boxes(store), len(store.queries())) == before
    assert job(A) == Imported(shared=1)
    assert boxes(store) == [theirs[1]]
    assert job(A) == Imported()
    assert job(second, theirs) == Imported(unchanged=1)
    assert job(second) == Imported(withdrawn=1)
    assert boxes(store) == []
    assert not len(store.labels_of(1).rejected)


def test_the_first_box_stays_if_the_second_job_deletes_its_own(tmp_path: Path, store: Store) -> None:
    for meta in (A, B):
        from_cvat(tmp_path, store, meta, ("img_1.png", "", [CAT]))
    assert from_cvat(tmp_path, store, B, ("img_1.png", "", [])) == Imported(shared=1)
    assert from_cvat(tmp_path, store, B, ("img_1.png", "", [])) == Imported()
    assert boxes(store) == [10]
    assert from_cvat(tmp_path, store, A, ("img_1.png", "", [])) == Imported(withdrawn=1)
    assert boxes(store) == []


@pytest.mark.parametrize("doubles", [("cat", 13), ("dog", 13)])
def test_a_box_of_another_label_takes_no_place(doubles: tuple[str, int], tmp_path: Path, store: Store) -> None:
    """Ann has boxed the object twice, perhaps with two classes, and Bob once. Ann deletes one of hers."""
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT, doubles]))
    from_cvat(tmp_path, store, B, ("img_1.png", "", [(doubles[0], 14)]))
    assert from_cvat(tmp_path, store, A, ("img_1.png", "", [doubles])) == Imported(withdrawn=1, unchanged=1)
    assert boxes(store) == [13]
    assert from_cvat(tmp_path, store, A, ("img_1.png", "", [])) == Imported(shared=1)
    assert boxes(store) == [14]


@pytest.mark.parametrize("order", [1, -1])
def test_the_nearest_box_takes_the_place_of_a_label(order: int, tmp_path: Path, store: Store) -> None:
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT, ("dog", 20)]))
    from_cvat(tmp_path, store, B, ("img_1.png", "", [("dog", 20), ("cat", 11)][::order]))
    assert from_cvat(tmp_path, store, A, ("img_1.png", "", [("dog", 20)])) == Imported(shared=1, unchanged=1)
    labels = store.labels_of(1)
    assert sorted(zip(labels.boxes[:, 0].tolist(), labels.labels.tolist(), strict=True)) == [(11, 0), (20, 1)]


def test_an_object_that_is_drawn_again_counts_once(tmp_path: Path, store: Store) -> None:
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT]))
    from_cvat(tmp_path, store, B, ("img_1.png", "", [NEAR]))
    from_cvat(tmp_path, store, A, ("img_1.png", "", []))
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT]))
    assert boxes(store) == [12]
    assert from_cvat(tmp_path, store, B, ("img_1.png", "", [])) == Imported(shared=1)
    assert boxes(store) == [10]


def test_a_box_that_another_tool_holds_stays(tmp_path: Path, store: Store) -> None:
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT]))
    assert from_label_studio(tmp_path, store, (1, "2024-01-02T03:04:05Z", 10)).missed == 0
    assert from_cvat(tmp_path, store, A, ("img_1.png", "", [])) == Imported(shared=1)
    assert boxes(store) == [10]


def test_replace_deletes_a_box_that_another_job_holds(tmp_path: Path, store: Store) -> None:
    for meta in (A, B):
        from_cvat(tmp_path, store, meta, ("img_1.png", "", [CAT]))
    (tmp_path / "a.xml").write_text(f"<annotations><meta>{A}</meta>{EMPTY}</annotations>")
    assert bring_in(store, cvat.read(tmp_path / "a.xml"), "cvat", instead=True) == Imported(withdrawn=1)
    assert boxes(store) == []


def test_complete_reports_only_labels_that_no_task_of_the_file_has(tmp_path: Path, store: Store) -> None:
    project = f"<project><tasks>{about('task', 7)}{about('task', 8, 'Bob')}</tasks></project>"
    from_cvat(tmp_path, store, A, ("img_1.png", "", [("cat", 150)]))
    from_cvat(tmp_path, store, project, ("img_1.png", 'task_id="7"', [CAT]), ("img_1.png", 'task_id="8"', [DOG]))
    for _ in range(2):
        assert bring_in(store, cvat.read(tmp_path / "a.xml"), "cvat", complete=True).kept == 1


@pytest.mark.parametrize("verdict", [Verdict.NOT_AN_OBJECT, Verdict.OBJECT])
def test_a_second_box_on_an_object_does_not_overrule_a_correction(
    verdict: Verdict, tmp_path: Path, store: Store
) -> None:
    """Ann rejects the label on the page, or draws it smaller. Bob's job, which boxed the object too, is read again."""
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT]))
    from_cvat(tmp_path, store, B, ("img_1.png", "", [NEAR]))
    label = next(query.id for query, answer in store.answered() if answer.verdict is Verdict.OBJECT)
    smaller = np.array([[10.0, 10, 25, 25]] if verdict is Verdict.OBJECT else []).reshape(-1, 4)
    store.record([Answer(label, smaller, np.zeros(len(smaller), np.int64), verdict, "Ann")])
    assert from_cvat(tmp_path, store, B, ("img_1.png", "", [NEAR])) == Imported(left=1)
    assert store.labels_of(1).boxes.tolist() == smaller.tolist()
    assert from_cvat(tmp_path, store, B, ("img_1.png", "", [("cat", 14)])) == Imported(left=1)
    assert boxes(store) == [10] * len(smaller)


def test_a_second_box_that_became_a_label_and_was_corrected_stays_corrected(tmp_path: Path, store: Store) -> None:
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT]))
    from_cvat(tmp_path, store, B, ("img_1.png", "", [NEAR]))
    from_cvat(tmp_path, store, A, ("img_1.png", "", []))
    label = next(query.id for query, answer in store.answered() if answer.verdict is Verdict.OBJECT)
    store.record([Answer(label, np.zeros((0, 4)), np.zeros(0, np.int64), Verdict.NOT_AN_OBJECT, "Bob")])
    assert from_cvat(tmp_path, store, B, ("img_1.png", "", [NEAR])) == Imported(unchanged=1)
    assert boxes(store) == []


def test_an_object_keeps_a_label_when_one_task_moves_its_box_away(tmp_path: Path, store: Store) -> None:
    def task(number: int, left: int) -> None:
        made = {"id": number, "project": 1, "data": {"image": "img_1.png"}}
        made["annotations"] = [{"id": 1, "completed_by": number, "result": [region(f"r{number}", left)]}]
        (tmp_path / "x.json").write_text(json.dumps([made]))
        bring_in(store, labelstudio.read(tmp_path / "x.json"), "labelstudio")

    task(1, 10)
    task(2, 12)
    task(1, 100)
    assert boxes(store) == [12, 100]


@pytest.mark.parametrize("verdict", [Verdict.NOT_AN_OBJECT, Verdict.OBJECT])
def test_a_file_that_says_nothing_new_changes_no_later_answer_of_the_same_person(
    verdict: Verdict, tmp_path: Path, store: Store
) -> None:
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT]))
    ((query, _),) = store.answered()
    now = np.array([[12.0, 10, 52, 50]] if verdict is Verdict.OBJECT else []).reshape(-1, 4)
    store.record([Answer(query.id, now, np.ones(len(now), np.int64), verdict, "Ann")])
    for _ in range(2):
        assert from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT])) == Imported(unchanged=1)
        assert store.labels_of(1).boxes.tolist() == now.tolist()
    there = [("dog", 12)] if len(now) else []  # she makes the same correction in the tool, then changes her mind there
    for _ in range(2):
        from_cvat(tmp_path, store, A, ("img_1.png", "", there))
        assert len(store.labels_of(1).boxes) == len(now)
    answers = len(People(store).given())
    from_cvat(tmp_path, store, A, ("img_1.png", "", there))
    assert len(People(store).given()) == answers
    from_cvat(tmp_path, store, A, ("img_1.png", "", [CAT]))
    assert boxes(store) == [10]
    assert from_cvat(tmp_path, store, A, ("img_1.png", "", [("cat", 14)])) == Imported(missed=1)
    assert boxes(store) == [14]
