"""Renders the templates: ``page.html.j2`` is common to all pages; ``run.html.j2`` and ``grid.html.j2`` extend it."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rarebox.report import drawing, wording


def render(template: str, **values: object) -> str:
    """The text of a page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        f.__name__: f for f in (wording.number, wording.count, wording.share, wording.factor, wording.duration)
    }
    environment.filters |= {"setting": _setting, "tail": lambda path: Path(path).name}
    return environment.get_template(template).render(light=drawing.LIGHT, dark=drawing.DARK, **values)


def _setting(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or wording.DASH
    return wording.DASH if value is None else str(value)
