"""JSON and YAML from files and requests: parsed within bounds, and with errors of one kind.

What these libraries raise for a text that is broken or hostile is not only their own error: too deep a nesting is a
``RecursionError``, a number of ten thousand digits a ``ValueError``, a date without a month an ``AttributeError``.
Here JSON raises ``ValueError`` and YAML ``YAMLError``, and nothing else. XML is in :mod:`rarebox.data.markup`.
"""

import json
import math
from collections import Counter
from typing import Any

import yaml

from rarebox.errors import UserError

MOST_UNFOLDED = 100_000
"""Nodes that the aliases of a YAML text may stand for, all together."""

LONGEST_NUMBER = 400
"""Characters of a number in YAML: more than any ``float`` needs, and little enough to compute with."""

DEEPEST = 100
"""Levels of ``[`` and ``{`` in YAML: each further one takes PyYAML longer than the one before."""

LONGEST_YAML = 2 << 20
"""Characters of a YAML text."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that holds these pairs. Raises ``ValueError`` if a key occurs twice.

    Python keeps the last of two values, so the first of two lists of annotations would be lost. Pass this function to
    ``json`` as ``object_pairs_hook``.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r:.60} occurs more than once in one object")
    return found


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ``ValueError`` (``json.JSONDecodeError`` for a syntax error)."""
    try:
        return json.loads(text, object_pairs_hook=unrepeated)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite(value: Any) -> float:
    """The finite number that a value is, or that a text writes. Raises ``ValueError`` or ``TypeError`` for another.

    Unlike ``float`` it refuses NaN, infinity, truth values and Python's own ``1_000``.
    """
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError(f"{value!r:.60} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{value!r:.60} is not a finite number")
    return number


class Loader(yaml.SafeLoader):
    """YAML whose aliases stand for a bounded number of nodes, and whose numbers for a bounded number of digits.

    No mapping has a key twice.

    An alias is kept as a reference, so ten lines can hold ten to the tenth nodes, which show when somebody goes
    through them.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}
        self._unfolded = 0

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= DEEPEST:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if alias:
            size = self._sizes.get(id(node))
            self._unfolded += size or 0
            if size is None or self._unfolded > MOST_UNFOLDED:
                what = "holds itself" if size is None else f"makes more than {MOST_UNFOLDED:,} values of this text"
                raise yaml.MarkedYAMLError(problem=f"this alias {what}", problem_mark=mark)
        elif node is not None:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in _parts(node))
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[int | str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (plain := _as_number(key.value)) in seen:
                    problem = f"the key {key.value!r:.60} occurs more than once"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(plain)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
            problem = f"a number of more than {LONGEST_NUMBER} characters"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_object(node, deep)


class PlainLoader(Loader):
    """The same, with every scalar as the text that is written: ``no``, ``012`` and ``1_000`` are names."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


def _as_number(key: str) -> int | str:
    """A key as the whole number that it writes, if it does: ``0`` and ``00`` are the same key."""
    try:
        return int(key) if len(key) <= LONGEST_NUMBER else key
    except ValueError:
        return key


def _parts(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def from_yaml(text: str, loader: type[Loader] = Loader) -> Any:
    """The value of a YAML text. Raises ``yaml.YAMLError``, or what the ``loader`` raises of its own (a `UserError`).

    The error has ``problem`` and ``problem_mark`` where the place is known.
    """
    if len(text) > LONGEST_YAML:
        raise yaml.YAMLError(f"it has more than {LONGEST_YAML >> 20} million characters")
    try:
        return yaml.load(text, loader)
    except (yaml.YAMLError, UserError, MemoryError):
        raise
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except Exception as error:  # PyYAML's constructors let through what Python says of a value: many kinds
        raise yaml.YAMLError(f"a value cannot be understood ({error})") from error
