"""Every name, link and command on the pages exists."""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import typer

import rarebox
from rarebox import config
from rarebox.cli.main import app
from rarebox.data import scenes
from tests import tiny

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.ipynb")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "paper" / "README.md",
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    """The Markdown of a page; of a notebook, its cells, the code among them as blocks of Python."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells)


def blocks(text: str, python: bool) -> list[str]:
    """The blocks of code of a page, those in Python or all others."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [code for language, code in found if (language == "python") == python]


def in_snippets(page: Path) -> Iterator[ast.AST]:
    for snippet in blocks(text_of(page), python=True):
        yield from ast.walk(ast.parse(snippet))


def inline(text: str) -> list[str]:
    """The code in backticks outside of blocks."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


# ------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.M), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_page
def test_links_have_targets(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)) if "://" not in link]
    lost = []
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@each_page
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"@[A-Z]{3,}@|[A-Z]+PENDING|TODO|XXX", text_of(page)) == []


# ------------------------------------------------------------------------------------------- names of the code

ENDINGS = re.compile(
    r"py|js|json|jsonl|yaml|toml|lock|txt|md|ipynb|html|css|xml|csv|parquet|sqlite|safetensors|onnx|jpe?g|png|sh",
    re.IGNORECASE,
)
"""Suffixes of file names, which look like names of the code."""

KEYS = frozenset({"attributes.complete", "attributes.source"})
"""Keys of JSON files."""


def names_in(page: Path) -> set[str]:
    """The dotted names on a page, in backticks."""
    pattern = re.compile(r"([a-z_]+(?:\.\w+)+)(?:\([^`]*\))?")
    found = {match[1] for code in inline(text_of(page)) if (match := pattern.fullmatch(code))}
    own = {name for node in in_snippets(page) for name in (getattr(node, "id", ""), getattr(node, "attr", ""))}
    return {
        n for n in found if not ENDINGS.fullmatch(n.rpartition(".")[2]) and n.split(".")[0] not in own - {"rarebox"}
    }


def resolve(name: str) -> object:
    """The module or member with that name. Raises AttributeError or ImportError."""
    parts = name.removeprefix("rarebox.").split(".")
    for count in range(len(parts), -1, -1):
        try:
            found: object = import_module(".".join(["rarebox", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def exists(name: str) -> bool:
    try:
        resolve(name)
    except (AttributeError, ImportError):
        return False
    return True


def test_names_are_resolved_or_not() -> None:
    assert all(map(exists, ("rarebox.rank", "pool.candidates.find_partners", "rarebox.labels.store.Store.labels")))
    assert not any(map(exists, ("candidates.match_views", "rarebox.match_views", "pool.candidates.match_views")))


@each_page
def test_names_of_the_code_exist(page: Path) -> None:
    assert sorted(n for n in names_in(page) - config.NAMES - KEYS if not exists(n)) == []


@each_page
def test_files_of_the_code_exist(page: Path) -> None:
    named = re.findall(r"`([\w/]+\.(?:py|js))\b", text_of(page))
    folders = [ROOT / name for name in ("src", "tests", "benchmarks", "docs")]
    there = [str(file) for folder in folders for kind in ("*.py", "*.js") for file in folder.rglob(kind)]
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in there)] == []


# ------------------------------------------------------------------------------------------- snippets


@each_page
def test_names_in_snippets_exist(page: Path) -> None:
    named = [
        f"{node.module}.{name.name}"
        for node in in_snippets(page)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rarebox")
        for name in node.names
    ]
    named += [ast.unparse(node) for node in in_snippets(page) if isinstance(node, ast.Attribute)]
    assert [name for name in named if name.startswith("rarebox.") and not exists(name)] == []


@each_page
def test_arguments_in_snippets_exist(page: Path) -> None:
    for node in in_snippets(page):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("rarebox."):
            continue
        function = resolve(ast.unparse(node.func))
        assert callable(function)
        taken = inspect.signature(function).parameters
        others = {keyword.arg for keyword in node.keywords if keyword.arg} - taken.keys()
        if function is rarebox.build_detector:
            others = {f"detector.{name}" for name in others}
        assert not others or any(each.kind == each.VAR_KEYWORD for each in taken.values()), ast.unparse(node)
        assert {name.replace("__", ".") for name in others} <= config.NAMES, ast.unparse(node)


# ------------------------------------------------------------------------------------------- commands


def options_of(command: Any) -> set[str]:
    """The options of a command, or of all commands of a group."""
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(options_of(each) for each in getattr(command, "commands", {}).values()))


COMMANDS = {
    name: options_of(command)
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}
EVERYWHERE = {"--help", "--version", "-h"}


def command_lines(text: str) -> Iterator[str]:
    """Each command of a page: lines of blocks, and code in backticks."""
    code = [*blocks(text, python=False), *inline(text)]
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        yield from re.split(r"&&|\||;|\s# ", line)


def options(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = []
    for line in command_lines(text_of(page)):
        before, called, rest = line.partition("rarebox ")
        name = re.match(r"[a-z]+(?:-[a-z]+)*\b(?!:)", rest)
        if not called or before.rstrip().endswith(("import", "from")) or not name:
            continue
        if name[0] not in COMMANDS or {*options(rest)} - COMMANDS[name[0]] - EVERYWHERE:
            wrong.append(line)
    assert wrong == []


OPTIONS = {option for known in COMMANDS.values() for option in known} | EVERYWHERE
OF_OTHERS = {
    *("--user", "--nproc-per-node", "--nnodes", "--master-addr", "--master-port"),
    *("--max-restarts", "--rdzv-backend", "--standalone"),
}
"""Options of docker and of torchrun."""


@each_page
def test_options_without_a_command_are_those_of_some_command(page: Path) -> None:
    named = {option for code in inline(text_of(page)) if code.startswith("--") for option in options(code)}
    scripts = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").glob("*.py"))
    known = OPTIONS | OF_OTHERS
    assert sorted(o for o in named - known if page.parent.name != "benchmarks" or f'"{o}"' not in scripts) == []


@each_page
def test_options_of_benchmarks_exist(page: Path) -> None:
    wrong = []
    for line in command_lines(text_of(page)):
        called = re.search(r"python (?:-m benchmarks\.|benchmarks/)(\w+)(.*)", line)
        if called:
            script = (ROOT / "benchmarks" / f"{called[1]}.py").read_text(encoding="utf-8")
            wrong += [(called[1], option) for option in options(called[2]) if f'"{option}"' not in script]
    assert wrong == []


def test_benchmarks_that_use_the_tests_are_run_as_modules() -> None:
    """Run as a file, such a benchmark cannot import the package `tests`."""
    scripts = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").glob("*.py")}
    using = [name for name, script in scripts.items() if "\nfrom tests" in script]
    assert using
    texts = [*scripts.values(), *map(text_of, PAGES)]
    assert [name for name in using if any(f"python benchmarks/{name}.py" in text for text in texts)] == []


@each_page
def test_targets_of_make_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", makefile, re.MULTILINE)
    called = {name for line in command_lines(text_of(page)) for name in re.findall(r"^\s*make ([a-z]+)", line)}
    assert called <= {*targets}


# ------------------------------------------------------------------------------------------- the site


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".ipynb"], ids=lambda page: page.stem)
def test_notebooks_run_and_draw(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small network, few pictures and steps. `make docs` runs them unchanged."""
    drawn: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: drawn.extend(plt.get_fignums()))
    make = scenes.make
    monkeypatch.setattr(scenes, "make", lambda *place, **more: make(*place, **{**more, "train": 30, "test": 5}))
    make_settings, few = rarebox.make_settings, {"training__steps": 4, "training__warmup_steps": 0}
    monkeypatch.setattr(rarebox, "make_settings", lambda *given, **more: make_settings(*given, **{**more, **few}))
    cells = [cell for cell in json.loads(page.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    with tiny.small_network(), tiny.figures_not_drawn():
        for number, cell in enumerate(cells):
            exec(compile("".join(cell["source"]), f"{page.name}, cell {number}", "exec"), names)
    for figure in map(plt.figure, drawn):
        figure.canvas.draw()
    plt.close("all")
    assert drawn
    assert {cell["execution_count"] for cell in cells} == {None}  # no stale result is committed
    assert not any(cell["outputs"] for cell in cells)


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    unrun = ["-D", "nb_execution_mode=off"]
    command = [sys.executable, "-m", "sphinx", "-W", "-q", *unrun, "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(file.relative_to(tmp_path)): file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.html")}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.stem}.html" in pages
    for page in (ROOT / "docs").glob("*.ipynb"):
        assert f"docs/{page.stem}.html" in pages
    for name in rarebox.__all__:
        assert f'id="rarebox.{name}"' in pages["docs/api.html"]
    loads = re.compile(r"<(?:script|img|iframe|source|link)[^>]*\s(?:src|href)=\"(?:https?:)?//")
    assert [page for page, html in pages.items() if loads.search(html)] == []
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:|//)", style.read_text(encoding="utf-8")), style
