"""The part of a page that says what was learned: probes beside their baselines, confusions, the spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from vjepa.page.document import folded, note, table, text
from vjepa.reporting import record, tables
from vjepa.reporting.curves import Chart, Series, draw
from vjepa.reporting.record import RunRecord

_PROBES: Final = {"knn": "k-NN", "linear": "linear"}
_MOST_CLASSES: Final = 25  # of a table of confusions; of more the most frequent mistakes are listed
_MOST_CONFUSED: Final = 20
_NAME, _PLOT, _ROW = 178, 380, 20


def probes(records: Sequence[RunRecord]) -> str:
    """Show every label and probe: the trained encoders, their baselines and chance, with 95 % intervals."""
    labels = dict.fromkeys(label for one in records for label in one.summary.get("probes", {}))
    return "\n".join(_label(label, records) for label in labels)


def _label(label: str, records: Sequence[RunRecord]) -> str:
    found = [(name, one.summary["probes"][label]) for name, one in zip(record.names(records), records, strict=True)
             if label in one.summary.get("probes", {})]  # fmt: skip
    parts = [f"<h3>{text(label)}</h3>"]
    for probe, title in _PROBES.items():
        rows = list(_kinds(found, probe))
        if rows:
            parts.append(_intervals(f"{label}, {title}: {tables.measure_of(found[0][1][probe])}", rows))
    entry = found[0][1]["linear"]
    clips = entry["num_clips"]
    parts.append(
        note(
            f"{clips['val']} clips measured, {clips['train']} to learn from, {clips['selection']} to choose on; "
            "lines are 95 % intervals over resampled clips, or over groups where there are some"
        )
    )
    for name, entries in found:
        of_run = f" of {name}" if len(found) > 1 else ""
        parts.append(folded(f"confusions{of_run}, linear probe", confusions(entries["linear"]["scores"])))
    return "\n".join(part for part in parts if part)


def _kinds(
    found: Sequence[tuple[str, Mapping[str, Any]]], probe: str
) -> Iterator[tuple[str, Mapping[str, float], bool]]:
    """Yield name, interval and whether it is trained, of each run and of each baseline of the first."""
    for name, entries in found:
        share = tables.first_measures(entries[probe])["trained"]
        if share:
            yield ("trained" if len(found) == 1 else name), share, True
    for kind, share in tables.first_measures(found[0][1][probe]).items():
        if kind != "trained" and share:
            yield tables.KINDS.get(kind, kind), share, False


def _intervals(title: str, rows: Sequence[tuple[str, Mapping[str, float], bool]]) -> str:
    """Draw values with their intervals, a line each."""
    low = min(0.0, *(share["low"] for _, share, _ in rows))
    high = max(1.0, *(share["high"] for _, share, _ in rows))

    def right(value: float) -> float:
        return _NAME + (value - low) / (high - low) * _PLOT

    width, height = _NAME + _PLOT + 150, _ROW * len(rows) + 6
    said = "; ".join(f"{name} {_told(share)}" for name, share, _ in rows)
    lines = [
        f'<figure class="intervals"><figcaption>{text(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(f"{title}: {said}")}" '
        f'style="max-width:{width}px">'
    ]
    for place, (name, share, is_trained) in enumerate(rows):
        middle, style = _ROW * place + _ROW // 2, "s0" if is_trained else "s7"
        ends = f'x1="{right(share["low"]):.1f}" x2="{right(share["high"]):.1f}" y1="{middle}" y2="{middle}"'
        lines.append(
            f"<g><title>{text(f'{name}: {_told(share)}')}</title>"
            f'<text x="{_NAME - 8}" y="{middle + 4}" text-anchor="end">{text(name[:28])}</text>'
            f'<line class="grid" x1="{_NAME}" x2="{_NAME + _PLOT}" y1="{middle}" y2="{middle}"/>'
            f'<line class="{style}" stroke-width="2.5" {ends}/>'
            f'<circle class="{style}" cx="{right(share["value"]):.1f}" cy="{middle}" r="4.5"/>'
            f'<text x="{_NAME + _PLOT + 10}" y="{middle + 4}">{text(_told(share))}</text></g>'
        )
    return "".join([*lines, "</svg></figure>"])


def _told(share: Mapping[str, float]) -> str:
    return f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"


def confusions(scores: Mapping[str, Any]) -> str:
    """Show which classes are taken for which: a table, of many classes the most frequent mistakes alone."""
    if "confusion" not in scores:
        return ""
    names, counts = scores["names"], np.array(scores["confusion"])
    if len(names) > _MOST_CLASSES:
        off = counts - np.diag(np.diag(counts))
        order = np.argsort(off, axis=None)[::-1][:_MOST_CONFUSED]
        worst = [(names[i], names[j], str(off[i, j])) for i, j in zip(*np.unravel_index(order, off.shape), strict=True)]
        return table(("true", "taken for", "clips"), [row for row in worst if row[2] != "0"], numbers=(2,))
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    lines = []
    for name, row in zip(names, counts, strict=True):
        shares = row / max(1, row.sum())
        cells = "".join(f'<td style="--p:{p:.2f}">{num or ""}</td>' for num, p in zip(row, shares, strict=True))
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    corner = "<td>true \\ taken for</td>"
    return (
        '<div class="scroll matrix" tabindex="0" role="region" aria-label="confusions">'
        f"<table><tr>{corner}{head}</tr>{''.join(lines)}</table></div>"
    )


def finetuned(one: RunRecord) -> str:
    """Show a fine-tuned network beside the frozen probes of its start and chance, and its confusions."""
    kinds = one.summary.get("kinds", {})
    rows = [(name, kind["top1"], name in ("fine-tuned", "from scratch")) for name, kind in kinds.items()]
    if not rows:
        return ""
    label = one.summary["label"]
    drawn = _intervals(f"{label}: accuracy", rows)
    return drawn + folded("confusions", confusions(one.summary.get("scores", {})))


def features(records: Sequence[RunRecord]) -> str:
    """Show the spectrum of the features of clips, and how far they tell clips apart, beside the untrained encoder."""
    return _spectrum(records) + _collapse(records)


def _spectrum(records: Sequence[RunRecord]) -> str:
    series = []
    for name, one in zip(record.names(records), records, strict=True):
        for kind in ("trained", "untrained"):
            if one.shown and f"spectrum/{kind}" in one.shown.arrays:
                variance = one.shown.arrays[f"spectrum/{kind}"].astype(float)
                share = variance / max(variance.sum(), 1e-30)
                kept = share[share > 1e-7]  # what is less is rounding of the features
                word = kind if len(records) == 1 else f"{name}, {kind}"
                series.append(Series(word, np.arange(1, len(kept) + 1, dtype=float), kept))
    said = "Share of the variance of clips along each principal axis. A line that drops at once has collapsed."
    chart = Chart("spectrum of the features", tuple(series), along="axis", note=said, is_broad=True, is_log=True)
    drawn = draw(chart)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _collapse(records: Sequence[RunRecord]) -> str:
    rows = []
    for name, one in zip(record.names(records), records, strict=True):
        for kind, key in (("trained", "collapse"), ("untrained", "untrained")):
            if found := one.summary.get(key):
                rank = f"{found['effective_rank']:.1f} of {found['num_features']}"
                rows.append((f"{name}, {kind}", rank, f"{found['feature_std']:.3f}"))
    return table(("features of val clips", "effective rank", "deviation"), rows, numbers=(1, 2))
