"""The part of a page that shows clips: players with masks and colours, nearest neighbours, worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vjepa.page.document import image, note, text
from vjepa.page.player import Film, Layer, cells_png, mask_png, player
from vjepa.reporting.record import RunRecord
from vjepa.reporting.shown import Shown

_WORST: Final = 10


def players(one: RunRecord) -> str:
    """Show each clip with the context and the targets of every mask set, and the colours of its features."""
    if one.shown is None:
        return ""
    drawn = [player(_film(one.shown, place), place) for place in range(len(one.shown.facts["clips"]))]
    fine, num = one.shown.facts["fine"], one.shown.facts["num_compared"]
    said = (
        "Masks are those of the first clips of the run: what is grey is hidden from the context encoder, or not "
        "predicted. Colours are features along three principal axes as red, green and blue, fitted without labels: "
        f"those along which the means of {num} clips differ most (averaged over two tokens), and those along which the "
        "parts of the clips below do. Each encoder has its own axes: one colour means one thing in all clips and at "
        f"all times, but not in trained and untrained alike. Each token is seen {fine} x {fine} times, shifted by "
        "parts of a patch. Arrow keys step through a clip."
    )
    sets = "; ".join(f"set {number}: {kind}" for number, kind in enumerate(one.shown.facts["masks"]))
    return note(f"Mask sets: {sets}.") + note(said) + "\n".join(drawn)


def _film(shown: Shown, place: int) -> Film:
    facts, slots = shown.facts, tuple(shown.facts["slots"])
    clip = facts["clips"][place]
    layers = []
    for number in range(len(facts["masks"])):
        for name, said in (("context", "seen"), ("target", "predicted")):
            png = mask_png(shown.bits(f"{name}/{number}/{place}"))
            layers.append(Layer(f"set {number}: {said}", png, slots, covers=True))
    for name, said in (("clips", "what tells clips apart"), ("parts", "what tells parts apart")):
        for kind in ("trained", "untrained"):
            layers.append(Layer(f"{said}, {kind}", cells_png(shown.arrays[f"{name}/{kind}/{place}"]), slots))
    title = facts["words"].get(str(clip["clip_id"]), f"clip {clip['clip_id']}")
    names = tuple(f"frame {frame}" for frame in facts["frames"])
    return Film(title, shown.content(f"clip/{place}"), "webp", names, tuple(clip["size"]), tuple(layers))


def neighbours(one: RunRecord) -> str:
    """Show the nearest others of some clips, by the trained encoder and by the untrained one."""
    if one.shown is None:
        return ""
    near, num = one.shown.facts["neighbours"], one.shown.facts["num_compared"]
    parts = [note(f"Nearest of {num} clips by the cosine of their mean features. {_agreement(near)}")]
    for place, query in enumerate(near["queries"]):
        rows = "".join(
            f"<div><h3>{text(kind)}</h3>{_thumbs(one.shown, [query, *near[kind][place]], 'the clip itself')}</div>"
            for kind in ("trained", "untrained")
        )
        parts.append(f'<div class="pairs">{rows}</div>')
    return "\n".join(parts)


def _agreement(near: Mapping[str, Any]) -> str:
    trained, untrained = near["agree/trained"], near["agree/untrained"]
    told = [
        f"{label}: {trained[label]:.0%} of neighbours agree, untrained {untrained[label]:.0%}"
        for label in trained
        if trained[label] is not None and untrained[label] is not None
    ]
    return f"{'; '.join(told)}." if told else ""


def _thumbs(shown: Shown, ids: Sequence[int], first: str = "", said: Sequence[str] = ()) -> str:
    """Show a frame of each clip over its words. said: in their place."""
    cells = []
    for place, clip_id in enumerate(ids):
        words = said[place] if said else shown.facts["words"].get(str(clip_id), f"clip {clip_id}")
        if place == 0 and first:
            words = f"{first}: {words}"
        name = f"small/{clip_id}"
        shows = f'<img alt="" src="{image("webp", shown.content(name))}">' if name in shown.arrays else ""
        cells.append(f"<li>{shows}{text(words)}</li>")
    return f'<ul class="thumbs">{"".join(cells)}</ul>'


def mistakes(one: RunRecord) -> str:
    """Show what the linear probes, or the fine-tuned network, are most wrong about."""
    scores = {label: entries["linear"]["scores"] for label, entries in one.summary.get("probes", {}).items()}
    if "scores" in one.summary:
        scores[one.summary["label"]] = one.summary["scores"]
    parts = []
    for label, found in scores.items():
        worst = found.get("worst", [])[:_WORST]
        if not worst:
            continue
        said = [_mistake(mistake) for mistake in worst]
        ids = [mistake["clip_id"] for mistake in worst]
        shown = one.shown or Shown({"words": {}}, {})
        parts.append(f"<h3>{text(label)}</h3>{_thumbs(shown, ids, said=said)}")
    return "\n".join(parts)


def _mistake(one: Mapping[str, Any]) -> str:
    uri = str(one.get("uri", f"clip {one['clip_id']}")).rpartition("/")[2]
    if "confidence" in one:
        return f"{uri}: {one['truth']}, taken for {one['predicted']} ({one['confidence']:.2f})"
    return f"{uri}: {one['truth']}, taken for {one['predicted']}"
