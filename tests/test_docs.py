"""The pages do not point at what is not there."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from rarebox import config

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"@[A-Z]{3,}@|[A-Z]+PENDING|TODO|XXX", page.read_text(encoding="utf-8")) == []


ROOMS = {
    path.stem
    for path in (ROOT / "src" / "rarebox").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists()
}
MODULES = {path.stem for path in (ROOT / "src" / "rarebox").rglob("*.py")} - {"__init__", "__main__"}
FILES = ("py", "js", "json", "jsonl", "yaml", "parquet", "sqlite", "txt", "html", "css", "md", "xml", "lock", "toml")


def names_in(page: Path) -> set[str]:
    """What a page calls by a dotted name, in backticks."""
    return set(re.findall(r"`(?:rarebox\.)?([a-z_]+(?:\.\w+)+)(?:\([^`]*\))?`", page.read_text(encoding="utf-8")))


def resolve(name: str) -> object:
    """The module, or what it has of that name. Raises AttributeError or ImportError."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(["rarebox", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_code_exist(page: Path) -> None:
    wrong = []
    for name in names_in(page):
        first, last = name.split(".")[0], name.split(".")[-1]
        if last in FILES or name in config.NAMES or (first not in ROOMS and first not in MODULES):
            continue
        try:
            resolve(name)
        except (AttributeError, ImportError):
            wrong.append(name)
    assert sorted(wrong) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_code_exist(page: Path) -> None:
    named = re.findall(r"`([\w/]+\.(?:py|js))\b", page.read_text(encoding="utf-8"))
    folders = [ROOT / name for name in ("src", "tests", "benchmarks")]
    there = [str(file) for folder in folders for kind in ("*.py", "*.js") for file in folder.rglob(kind)]
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in there)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_of_snippets_exist(page: Path) -> None:
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rarebox"):
                for name in node.names:
                    resolve(f"{node.module}.{name.name}".removeprefix("rarebox."))
