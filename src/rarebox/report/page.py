"""Renders the templates: ``page.html.j2`` is common to all pages; ``run.html.j2`` and ``grid.html.j2`` extend it."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rarebox.report import drawing, wording


def render(template: str, **values: object) -> str:
    """The text of a page."""
    return _environment().get_template(template).render(light=drawing.LIGHT, dark=drawing.DARK, **values)


@cache
def _environment() -> Environment:
    """Kept, because compiling the templates takes longer than filling them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cast(Any, environment).filters.update(FILTERS)
    return environment


def _setting(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, cast(Sequence[object], value))) or wording.DASH
    return wording.DASH if value is None else str(value)


def _tail(path: str) -> str:
    return Path(path).name


FILTERS = {
    "number": wording.number,
    "count": wording.count,
    "share": wording.share,
    "factor": wording.factor,
    "duration": wording.duration,
    "setting": _setting,
    "tail": _tail,
}
"""The filters that templates may apply to a value, as in ``{{ value | number }}``."""
