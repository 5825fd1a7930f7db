"""The part of a page that says what a run was: its settings, those that differ from the defaults first, its machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml
from pydantic import BaseModel

from vjepa.config.section import Section
from vjepa.page.document import folded, table, text
from vjepa.reporting import record
from vjepa.reporting.record import RunRecord

_NONE: Final = "-"


def settings(records: Sequence[RunRecord]) -> str:
    """Show what differs from the defaults, of several runs what differs between them; then the whole configs."""
    flats = [flat(one.tree) for one in records]
    if len(records) > 1:
        rows = [
            (path, *(found.get(path, _NONE) for found in flats))
            for path in dict.fromkeys(path for found in flats for path in found)
            if len({found.get(path, _NONE) for found in flats}) > 1
        ]
        shown = table(("setting that differs", *record.names(records)), rows)
    else:
        shown = table(("setting", "value", "default"), changed(records[0]))
    whole = [
        folded(f"the whole config{f' of {name}' if len(records) > 1 else ''}", _yaml(one.tree))
        for name, one in zip(record.names(records), records, strict=True)
    ]
    return "\n".join([shown, *whole])


def changed(one: RunRecord) -> list[tuple[str, str, str]]:
    """List the settings that differ from their defaults: path, value, default, `required` where there is none."""
    if one.settings is None:
        return [(path, value, "not known to this version") for path, value in flat(one.tree).items()]
    found = flat(one.settings.model_dump(mode="json"))
    defaults = _defaults(type(one.settings))
    return [
        (path, value, defaults.get(path, "required")) for path, value in found.items() if defaults.get(path) != value
    ]


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Write a tree of settings as path -> value; lists and empty mappings stay whole."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: yaml.safe_dump(tree, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()}
    found: dict[str, str] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def _defaults(section: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Give the default of every setting that has one."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        path, inner = f"{prefix}{name}", field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found |= _defaults(inner, f"{path}.")
        elif not field.is_required():
            plain = _Plain(value=field.get_default(call_default_factory=True)).model_dump(mode="json")["value"]
            found |= flat(plain, path)
    return found


class _Plain(BaseModel):
    """Turn a default into what JSON has of it."""

    value: Any


def _yaml(tree: Mapping[str, Any]) -> str:
    lines = (text(line) for line in yaml.safe_dump(dict(tree), sort_keys=False).splitlines())
    return '<pre tabindex="0">' + "\n".join(lines) + "</pre>"


def machine(records: Sequence[RunRecord]) -> str:
    """Show commit, machine and libraries of each run."""
    flats = [flat(one.environment) if one.environment else {} for one in records]
    paths = dict.fromkeys(path for found in flats for path in found)
    rows = [(path, *(found.get(path, _NONE) for found in flats)) for path in paths]
    return table(("what", *record.names(records)), rows)


def left_out(one: RunRecord) -> str:
    """Show what was replaced, could not be read, or is in quarantine."""
    summary, rows = one.summary, list[tuple[str, str, str]]()
    rows += [("replaced in training", uri, reason) for uri, reason in summary.get("replaced", {}).items()]
    for line in summary.get("unreadable", ()):
        uri, _, reason = line.partition(": ")
        rows.append(("left out of probes", uri, reason))
    quarantine = one.shown.facts.get("quarantine", {}) if one.shown else {}
    rows += [("in quarantine", uri, reason) for uri, reason in quarantine.items()]
    return table(("what became of it", "clip", "reason"), rows)
