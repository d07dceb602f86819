"""The server killed under four writers: a short form of `benchmarks/kill_serve.py`."""

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import kill_serve


def test_every_answer_reported_as_saved_is_in_the_export_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_serve, "GRID", 10)
    outcome = kill_serve.run(kills=4, writers=4, seed=0, folder=tmp_path)
    assert outcome.kills == {"SIGKILL": 2, "SIGTERM": 2}
    assert outcome.sent_again > 0  # the writers noticed the kills
    assert outcome.good, outcome
    assert outcome.saved == outcome.exported
    for fault in ("lost", "doubled", "not_saved", "slow_ends"):
        assert not replace(outcome, **{fault: 1}).good
