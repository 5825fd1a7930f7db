"""Read YAML without its traps: `1e-4` is a number, a key given twice an error, and what is text stays as written.

YAML 1.1 reads 010 as 8, 12:30 as 750, no as False and 2024-06-01 as a date. Paths, names, labels and the values of
`where` are texts, whatever they look like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

import yaml

from vjepa.config.aliases import ALIASES
from vjepa.config.finetuning import FinetuneConfig
from vjepa.config.masks import MASK_KINDS
from vjepa.config.row_filter import parse_values
from vjepa.config.section import ConfigError, Section
from vjepa.config.settings import Config

_ROWS: Final = "where"  # a mapping of columns of the user's data, all of it text
_TEXT, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"line {node.start_mark.line + 1}: the key {key!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse(text: str, path: tuple[str, ...] = ()) -> Any:
    """Read the value of the setting at `path`, the whole config at (). Raises ConfigError, or YAMLError."""
    if len(path) > 1 and path[-2] == _ROWS:
        return _parse_rows(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_text(node, path[-1] if path else "")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def split_path(path: str) -> tuple[str, ...]:
    """Cut a path of keys at its dots; those in the name of a column belong to it."""
    keys = path.split(".")
    rows = keys.index(_ROWS) + 1 if _ROWS in keys[:-1] else len(keys)
    return (*keys[:rows], *filter(None, [".".join(keys[rows:])]))


def _parse_rows(text: str) -> str | list[str]:
    """Read the values of one column, by the grammar of every `--where`; brackets around them may be."""
    listed = text.startswith("[") and text.endswith("]")
    try:
        values = parse_values(text[1:-1] if listed else text) if text != "[]" else []
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return values if listed or len(values) > 1 else values[0]


def _keep_text(node: yaml.Node, key: str) -> None:
    """Make texts of the plain scalars in the value of `key` that are text; null stays, but among rows."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            _keep_text(name, _ROWS if key == _ROWS else "")
            _keep_text(value, key if key == _ROWS else name.value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _keep_text(value, key)
    elif key == _ROWS or (key in _text_keys() and node.tag != _NULL):
        node.tag = _TEXT


@cache
def _text_keys() -> frozenset[str]:
    """Find the keys that hold text wherever they stand."""
    sections: tuple[type[Section], ...] = (Config, FinetuneConfig, *MASK_KINDS.values())
    holds = [pair for section in sections for pair in _holding(section)]
    holds += [(name, text) for name, path in ALIASES.items() for key, text in holds if key == path.split(".")[-1]]
    return frozenset(key for key, text in holds if text) - {key for key, text in holds if not text}


def _holding(section: type[Section]) -> Iterator[tuple[str, bool]]:
    """Go through the keys of a section and of those inside: key, and whether its value is text, or a list of texts."""
    for key, setting in section.model_fields.items():
        kinds = set(_kinds(setting.annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        yield key, kinds - {NoneType, *inner} <= {str}
        for one in inner:
            yield from _holding(one)


def _kinds(annotation: Any) -> Iterator[Any]:
    """Go through the types that a value may be made of; of a Literal, those of its values."""
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif get_args(annotation):
        for one in get_args(annotation):
            yield from _kinds(one)
    else:
        yield annotation
