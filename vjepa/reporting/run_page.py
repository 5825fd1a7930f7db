"""The page of a run, or of several overlaid, from their files alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vjepa import __version__
from vjepa.page.document import document, folded, items, note, section, text
from vjepa.reporting import charts, clips, evidence, record, settings_table
from vjepa.reporting.record import RunRecord

_GOOD: Final = {"healthy": "healthy", "watch": "watch"}


def page(records: Sequence[RunRecord], *, is_live: bool = False) -> str:
    """Write the page of runs, at least one. is_live: it asks its server for news of the one run that it shows."""
    parts = [_head(records), *moving(records).values(), *_still(records)]
    live = f'<p id="live" class="note" role="status" data-offset="{records[0].log.offset}">live</p>' if is_live else ""
    foot = note(f"Rendered by vjepa {__version__} from the files of the run.")
    return document(title(records), "\n".join([live, *(part for part in parts if part), foot]), is_live=is_live)


def title(records: Sequence[RunRecord]) -> str:
    """Say in one line how the runs do."""
    return "; ".join(f"{name}: {one.headline()}" for name, one in zip(record.names(records), records, strict=True))


def moving(records: Sequence[RunRecord]) -> dict[str, str]:
    """Write the parts that change while a run goes on: id -> HTML."""
    found = {
        "verdict": _verdicts(records),
        "training": section("training", "Training", charts.training(records)),
        "health": section("health", "Is it healthy?", charts.health(records)),
    }
    nothing = '<section id="{0}"><h2>{1}</h2><p class="note">nothing was logged yet</p></section>'
    found["training"] = found["training"] or nothing.format("training", "Training")
    found["health"] = found["health"] or nothing.format("health", "Is it healthy?")
    return found


def _head(records: Sequence[RunRecord]) -> str:
    names = " beside ".join(record.names(records))
    links = {"training": "training", "health": "health", "probes": "probes", "clips": "clips", "settings": "settings"}
    inside = "".join(f'<a href="#{target}">{word}</a>' for target, word in links.items() if _is_there(target, records))
    return f'<h1>{text(names)}</h1>\n<nav aria-label="parts of this page">{inside}</nav>'


def _is_there(target: str, records: Sequence[RunRecord]) -> bool:
    if target == "probes":
        return any("probes" in one.summary or "kinds" in one.summary for one in records)
    return target != "clips" or (len(records) == 1 and records[0].shown is not None)


def _verdicts(records: Sequence[RunRecord]) -> str:
    parts = [_verdict(name, one) for name, one in zip(record.names(records), records, strict=True)]
    return f'<section id="verdict"><h2>Verdict</h2>{"".join(parts)}</section>'


def _verdict(name: str, one: RunRecord) -> str:
    verdict = one.verdict
    kind = "bad" if one.not_finite else _GOOD.get(verdict.state, "bad") if verdict else "unfinished"
    if kind == "healthy" and one.state == "unfinished":
        kind = "unfinished"
    said = [f"<strong>{text(f'{name}: {one.headline()}')}</strong>"]
    if verdict:
        said.append(f"<br>{text(verdict.rule)} (step {verdict.step})")
    if "final_loss" in one.summary:
        facts = f"final loss {one.summary['final_loss']:.6f}, {one.summary['clips_per_s']:.1f} clips/s"
        if "measured" in one.summary:
            facts += "; measured: {encoder}, step {step}".format(**one.summary["measured"])
        said.append(f"<br>{text(facts)}")
    first = one.first()
    to_do = f"<h3>What to do first</h3>{items(first, is_ordered=True)}" if first else note("Nothing needs to be done.")
    return f'<div class="verdict {kind}">{"".join(said)}{to_do}</div>'


def _still(records: Sequence[RunRecord]) -> list[str]:
    """Write the parts that are there at the end, and the settings."""
    found = [section("probes", "What probes read", evidence.probes(records), *map(evidence.finetuned, records))]
    found.append(section("features", "Features", evidence.features(records)))
    if len(records) == 1:
        (one,) = records
        found += [
            section("clips", "Clips, masks, features", clips.players(one)),
            section("neighbours", "Nearest neighbours", clips.neighbours(one)),
            section("mistakes", "Worst mistakes", clips.mistakes(one)),
            section("left-out", "What was left out", settings_table.left_out(one)),
        ]
    found.append(section("others", "What else was logged", folded("more curves", charts.others(records))))
    found.append(section("settings", "Settings", settings_table.settings(records)))
    return [*found, section("machine", "Commit and machine", settings_table.machine(records))]
