"""Links, names, files, commands and options in the documentation exist."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from rarebox import config
from rarebox.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "paper" / "README.md",
]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@PAGE
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = (re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@PAGE
def test_links_to_sections_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [anchor for file, anchor in links if anchor not in anchors(page.parent / file if file else page)] == []


@PAGE
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
    """The dotted names in backticks on a page."""
    return set(re.findall(r"`(?:rarebox\.)?([a-z_]+(?:\.\w+)+)(?:\([^`]*\))?`", page.read_text(encoding="utf-8")))


def resolve(name: str) -> object:
    """The module or attribute of that name. Raises AttributeError or ImportError if there is none."""
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


@PAGE
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


@PAGE
def test_files_of_the_code_exist(page: Path) -> None:
    named = re.findall(r"`([\w/]+\.(?:py|js))\b", page.read_text(encoding="utf-8"))
    folders = [ROOT / name for name in ("src", "tests", "benchmarks")]
    there = [str(file) for folder in folders for kind in ("*.py", "*.js") for file in folder.rglob(kind)]
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in there)] == []


COMMANDS = get_command(app)
assert isinstance(COMMANDS, TyperGroup)
OPTIONS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in COMMANDS.commands.items()
}
"""The options of each command of rarebox."""


def commands_in(page: Path) -> list[tuple[str, list[str]]]:
    """The command and the options of each call of rarebox in the code of a page."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```(?!python|yaml)\w*\n(.*?)```", text, re.DOTALL)
    lines = [
        *"\n".join(blocks).splitlines(),
        *re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)),
    ]
    calls = [re.search(r"(?:^|\s)rarebox ([a-z]+)([^#|;&]*)", line) for line in lines]
    return [(call[1], re.findall(r"(?<!\S)--[a-z-]+", call[2])) for call in calls if call]


@PAGE
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = [
        f"rarebox {command} {option}"
        for command, options in commands_in(page)
        for option in options or [""]
        if command not in OPTIONS or option not in {"", *OPTIONS[command]}
    ]
    assert wrong == []


@PAGE
def test_imports_of_snippets_exist(page: Path) -> None:
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rarebox"):
                for name in node.names:
                    resolve(f"{node.module}.{name.name}".removeprefix("rarebox."))
