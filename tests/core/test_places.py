"""Cache folders for users with and without a home folder."""

import os
import pwd
import sys
import tempfile
from pathlib import Path

import pytest

from rarebox.cli import main
from rarebox.core import places


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, and an environment that is restored after the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("RAREBOX_CACHE", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp" / f"rarebox-{os.getuid()}"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of a container, such as 12345, who is not in /etc/passwd."""

    def unknown(_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_writable_home_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.settle() == ""
    assert os.environ["HOME"] == str(tmp_path)
    assert places.cache_folder() == tmp_path / ".cache" / "rarebox"
    assert not (tmp_path / ".cache").exists()


@pytest.mark.usefixtures("no_home")
def test_without_a_home_everything_works_and_one_note_names_the_caches(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert places.cache_folder() == temporary / ".cache" / "rarebox"
    monkeypatch.setattr(sys, "argv", ["rarebox", "doctor"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert not left.value.code
    told = capsys.readouterr().err
    assert f"no home folder, so caches are kept in {temporary}" in told
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert Path.home() == temporary
    assert places.settle() == ""  # nor do child processes repeat it


def test_a_home_that_does_not_exist_and_cannot_be_made(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    assert "cannot be written" in places.settle()
    assert os.environ["HOME"] == str(temporary)


def test_files_in_the_cache_of_a_read_only_home_are_still_found(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / ".cache").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written" in places.settle()
    assert os.environ["HOME"] == str(tmp_path / "home")
    assert places.cache_folder() == temporary / "rarebox"


@pytest.mark.usefixtures("no_home")
def test_a_folder_that_somebody_else_has_made_is_not_used(temporary: Path, tmp_path: Path) -> None:
    temporary.symlink_to(tmp_path)
    places.settle()
    assert Path(os.environ["HOME"]).parent == temporary.parent
    assert Path(os.environ["HOME"]) != temporary
