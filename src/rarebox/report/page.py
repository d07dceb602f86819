"""Filling in the templates: ``page.html.j2`` is what all pages share, ``run.html.j2`` and ``grid.html.j2`` the rest."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rarebox.report import figures, words


def render(template: str, **values: Any) -> str:
    """The text of a page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        f.__name__: f for f in (words.number, words.count, words.share, words.factor, words.duration)
    }
    environment.filters |= {"setting": _setting, "tail": lambda path: Path(path).name}
    return environment.get_template(template).render(light=figures.LIGHT, dark=figures.DARK, **values)


def _setting(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or words.DASH
    return words.DASH if value is None else str(value)
