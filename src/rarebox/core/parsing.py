"""JSON and YAML from files and requests, parsed within limits and with uniform errors.

For broken or hostile text, the libraries raise more than their own errors: ``RecursionError`` for deep nesting,
``ValueError`` for a number of ten thousand digits, ``AttributeError`` for a date without a month. The functions here
raise only ``ValueError`` for JSON and ``YAMLError`` for YAML. XML is in :mod:`rarebox.data.markup`.
"""

# PyYAML's loader has no types:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import math
import re
from collections import Counter
from copy import deepcopy
from functools import lru_cache
from typing import SupportsFloat

import yaml

from rarebox.errors import UserError

MOST_UNFOLDED = 100_000
"""The most nodes to which all aliases of a YAML text together may expand."""

LONGEST_NUMBER = 400
"""The most characters of a number in YAML: more than any ``float`` needs, and few enough to compute with."""

DEEPEST = 100
"""The deepest nesting of ``[`` and ``{`` in YAML. In PyYAML each level takes longer than the one before."""

LONGEST_YAML = 2 << 20
"""The most characters of a YAML text."""

LONGEST_CACHED = 1 << 16
"""The most characters of a YAML text whose values are cached: a settings file has 8 thousand."""

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object from key-value pairs. Raises ``ValueError`` if a key occurs twice.

    By default Python keeps the last of two values and would lose the first of two lists of annotations. Pass this
    function to ``json`` as ``object_pairs_hook``.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r:.60} occurs more than once in one object")
    return found


def from_json(text: str | bytes) -> object:
    """Parse a JSON text. Raises ``ValueError`` (``json.JSONDecodeError`` for a syntax error)."""
    try:
        return json.loads(text, object_pairs_hook=unrepeated)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite(value: object) -> float:
    """Convert a number, or a text that holds one, to a finite float. Raises ``ValueError`` or ``TypeError``.

    Unlike ``float`` it refuses NaN, infinity, booleans and Python's own ``1_000``.
    """
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError(f"{value!r:.60} is not a number")
    if not isinstance(value, str | float | int | SupportsFloat):
        raise TypeError(f"{value!r:.60} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{value!r:.60} is not a finite number")
    return number


class Loader(yaml.SafeLoader):
    """A YAML loader that bounds the expansion of aliases, the digits of a number and the nesting.

    It refuses a mapping that has a key twice. PyYAML keeps an alias as a reference, so ten lines can hold ten to the
    tenth nodes, which only appear when a caller walks through them.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}
        self._unfolded = 0

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        if self.flow_level >= DEEPEST:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if alias:
            size = self._sizes.get(id(node))
            self._unfolded += size or 0
            if size is None or self._unfolded > MOST_UNFOLDED:
                what = "contains itself" if size is None else f"expands the text to more than {MOST_UNFOLDED:,} values"
                raise yaml.MarkedYAMLError(problem=f"this alias {what}", problem_mark=mark)
        elif node is not None:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in _parts(node))
        return node

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[int | str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (plain := _as_number(key.value)) in seen:
                    problem = f"the key {key.value!r:.60} occurs more than once"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(plain)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
            problem = f"a number of more than {LONGEST_NUMBER} characters"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_object(node, deep)


class PlainLoader(Loader):
    """A :class:`Loader` that reads every scalar as text: ``no``, ``012`` and ``1_000`` are names."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def _as_number(key: str) -> int | str:
    """The key as a whole number where it is one, so that ``0`` and ``00`` are the same key."""
    try:
        return int(key) if len(key) <= LONGEST_NUMBER else key
    except ValueError:
        return key


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


@lru_cache(maxsize=64)
def _cached(text: str, loader: type[Loader]) -> object:
    return yaml.load(text, loader)


def from_yaml(text: str, loader: type[Loader] = Loader) -> object:
    """Parse a YAML text. Raises ``yaml.YAMLError``, or the `UserError` of a custom ``loader``.

    Values are the caller's own to change, also where the same text was parsed before. The error has ``problem`` and
    ``problem_mark`` where the position is known.
    """
    if len(text) > LONGEST_YAML:
        raise yaml.YAMLError(f"it has more than {LONGEST_YAML >> 20} million characters")
    try:
        return deepcopy(_cached(text, loader)) if len(text) <= LONGEST_CACHED else yaml.load(text, loader)
    except (yaml.YAMLError, UserError, MemoryError):
        raise
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except Exception as error:  # PyYAML's constructors pass on many kinds of Python errors
        raise yaml.YAMLError(f"a value cannot be understood ({error})") from error
