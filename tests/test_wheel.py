"""The wheel, installed in a new environment, works without the source tree."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from matplotlib import get_cachedir

import rarebox
from rarebox.data import scenes
from tests.tiny import as_options

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a new environment with the wheel in it. It borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    commands = folder / "bin"
    uv = Path(sys.executable).parent / "uv"
    install = [str(uv), "pip", "install", "--offline", "--no-deps", "--python", str(commands / "python"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return commands


def run(command: Path, folder: Path, *words: str | Path) -> str:
    """Standard output of a command that runs in ``folder`` and sees neither this checkout nor this user's files, except
    matplotlib's list of fonts, which takes seconds to make.
    """
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(folder), "RAREBOX_CACHE": str(folder / "cache"), "MPLCONFIGDIR": get_cachedir()}
    done = subprocess.run(
        [command, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src"
    wanted = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"rarebox/py.typed", "rarebox/web/static/index.html", "rarebox/report/page.html.j2"} <= held
    assert held == {name for name in wanted if "__pycache__" not in name}


def test_the_installed_package_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import rarebox, sys; print(rarebox.__file__, *sys.path, sep='\\n')"
    module, *path = run(installed / "python", tmp_path, "-c", code).splitlines()
    assert Path(module).is_relative_to(installed.parent)
    assert str(ROOT / "src") not in path
    assert run(installed / "rarebox", tmp_path, "--version").strip() == rarebox.__version__


BOTH = """
import json, sys
from rarebox.cli.main import main

for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as left:
        assert not left.code, left.code
    print("end of a command")
"""


def test_the_installed_commands_work(installed: Path, tmp_path: Path) -> None:
    """Both in one process, because loading torch takes most of their time."""
    data = str(scenes.make(tmp_path / "data", seed=3, train=6, test=2, size=(96, 96)))
    few = as_options(training__steps=2, budget=[4], scoring__views=["flip"])
    commands = [["doctor", "--data", data, "--json"], ["run", "out", "--data", data, *few]]
    told = run(installed / "python", tmp_path, "-c", BOTH, json.dumps(commands))
    checks = json.loads(told.partition("end of a command")[0])
    assert [check["name"] for check in checks if check["needed"] and not check["ok"]] == []
    records = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert [record["cycle"] for record in records] == [1, 2]
    assert "<svg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
