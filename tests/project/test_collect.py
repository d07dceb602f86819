"""Labels for export: answers given after the training decide which pseudo labels remain."""

from pathlib import Path

import numpy as np

from rarebox.core.files import write_json
from rarebox.labels.leases import People
from rarebox.labels.targets import write_targets
from rarebox.project.collect import collect
from rarebox.types import Answer, Query, Source, Targets, Verdict
from tests.house import make_project, record

FIRST, SECOND, THIRD = [20.0, 20, 50, 50], [100.0, 100, 140, 140], [60.0, 5, 90, 35]


def test_later_answers_replace_pseudo_labels(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    folder, store = project.folder, project.store
    guesses = Targets.of([FIRST, SECOND, THIRD], [1, 1, 0], Source.PSEUDO, 0.6, 0.6)
    folder.cycle(1).mkdir(exist_ok=True, parents=True)
    write_targets(folder.cycle(1) / "targets.parquet", {1: guesses})
    write_json(folder.metrics, [record(1)])
    store.open_cycle(1)
    elsewhere, on_first, on_second, whole = store.ask(
        1, [Query(1, np.array(box, np.float32), 0) for box in ([0, 0, 9, 9], FIRST, SECOND)] + [Query(1)]
    )

    def answer(query: Query, verdict: Verdict, *boxes: list[float]) -> None:
        placed = np.array(boxes, np.float32).reshape(-1, 4)
        store.record([Answer(query.id, placed, np.zeros(len(boxes), np.int64), verdict, "ann")])

    def exported() -> list[tuple[str, int, list[float]]]:
        (found,) = (one for one in collect(folder.root)[2] if one.image_id == 1)
        return list(zip(found.source.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True))

    answer(elsewhere, Verdict.OBJECT, [0, 0, 9, 9])
    human = [("human", 0, [0, 0, 9, 9])]
    assert exported() == [*human, ("pseudo", 1, FIRST), ("pseudo", 1, SECOND), ("pseudo", 0, THIRD)]
    answer(on_first, Verdict.OBJECT, FIRST)
    answer(on_second, Verdict.NOT_AN_OBJECT)
    human.append(("human", 0, FIRST))
    assert exported() == [*human, ("pseudo", 0, THIRD)]
    People(store).merge_class(0, 2, "ann")
    names = project.store.classes()
    assert collect(folder.root)[1] == names[1:]  # the merged class is left out, the others keep their order
    assert exported() == [*(("human", 1, box) for _, _, box in human), ("pseudo", 1, THIRD)]
    People(store).rename_class(2, names[0], "ann")  # the merge went the wrong way round
    assert collect(folder.root)[1] == (names[1], names[0], *names[3:])
    answer(whole, Verdict.OBJECT, [0, 0, 9, 9])
    assert all(source == "human" for source, _, _ in exported())
