"""The settings as text for people: commented YAML files, and the page ``docs/settings.md``."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import yaml

from rarebox.config import FIRST, LAST, PRESETS, Section, Settings, flatten
from rarebox.core.parsing import from_yaml


def commented(settings: Settings) -> str:
    """The settings as YAML text with a comment on each, to edit."""
    return "\n".join([FIRST, *_commented(settings, ""), LAST]) + "\n"


def with_data(file: Path, settings: Settings, data: str) -> str:
    """The text of a settings file with another ``data``. Comments are kept where possible."""
    changed = settings.model_copy(update={"data": data})
    line = yaml.safe_dump({"data": data}, allow_unicode=True, width=float("inf")).rstrip("\n")
    before = file.read_text(encoding="utf-8")
    text = re.sub(r"^data:.*?(?=\s+#|$)", lambda _: line, before, count=1, flags=re.MULTILINE)
    try:
        old = from_yaml(before)
        same = isinstance(old, dict) and from_yaml(text) == {**old, "data": data}
    except yaml.YAMLError:
        same = False
    return text if same else commented(changed)


def _commented(section: Section, indent: str) -> Iterator[str]:
    plain = section.model_dump(mode="json")
    for name, about in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield f"\n{indent}{name}:  # {with_page((type(value).__doc__ or '').splitlines()[0])}"
            yield from _commented(value, indent + "  ")
        else:
            text = yaml.safe_dump(plain[name], default_flow_style=True, width=float("inf")).split("\n")[0]
            yield f"{indent}{name}: {text}  # {with_page(about.description or '')}{_choices(about.annotation)}"


def with_page(text: str) -> str:
    """Spell out references for use outside the page: ``"beta [2]"`` -> ``"beta (docs/decisions.md, row 2)"``."""
    return re.sub(r"\[(\d+)\]", r"(docs/decisions.md, row \1)", text)


def _choices(annotation: object, mark: str = "") -> str:
    """``"; one of a, b"`` for a setting with named choices, each between marks; otherwise empty."""
    parts = get_args(annotation)
    if parts[1:] == (...,):
        return _choices(parts[0], mark).replace("one of", "any of")
    names = [f"{mark}{choice}{mark}" for choice in parts if isinstance(choice, str)]
    return f"; one of {', '.join(names)}" if names else ""


def reference() -> str:
    """The Markdown of ``docs/settings.md``: every setting, its default and its meaning."""
    head = (
        "# Settings\n\nNumbers in square brackets are rows of [decisions](decisions.md). `make docs` generates "
        "this page from `config.py`. Commands use the preset `laptop` by default; its "
        "[changes](#presets) are listed at the end.\n"
    )
    return head + "".join(_reference(Settings(), "", "A run")) + _reference_of_presets()


def _reference(section: Section, prefix: str, title: str) -> Iterator[str]:
    yield f"\n## {title}\n\n{(type(section).__doc__ or '').splitlines()[0]}\n\n"
    yield "| setting | default | meaning |\n|---|---|---|\n"
    inner: list[tuple[Section, str]] = []
    for name, about in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            inner.append((value, name))
        else:
            default = json.dumps(section.model_dump(mode="json")[name])
            meaning = f"{about.description}{_choices(about.annotation, '`')}"
            yield f"| `{prefix}{name}` | `{default}` | {meaning} |\n"
    for value, name in inner:
        yield from _reference(value, f"{prefix}{name}.", f"`{name}`")


def _reference_of_presets() -> str:
    text = "\n## Presets\n\nChanges to the defaults. `paper` follows section 4.1 of the paper.\n"
    for preset, changes in PRESETS.items():
        rows = "".join(f"| `{name}` | `{json.dumps(value)}` |\n" for name, value in flatten(changes))
        text += f"\n| setting | `{preset}` |\n|---|---|\n{rows}"
    return text
