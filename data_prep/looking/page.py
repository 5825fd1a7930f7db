"""A description as one HTML page that needs no other file: the page of the house, with a player for each clip."""

from __future__ import annotations

from data_prep.looking.contact_sheet import FRAME_PX, MOMENTS, SheetClip
from data_prep.looking.description import Description, Table
from vjepa.page.document import document, items, note, section, table, text
from vjepa.page.player import Film, player


def page(description: Description, clips: tuple[SheetClip, ...]) -> str:
    """Write one HTML page with everything inside; clips, if there are any, close it."""
    parts = [f"<h1>{text(description.title)}</h1>", items(description.warnings, "warnings")]
    parts += ['<div class="tables">', *map(_section, description.tables), "</div>"]
    if clips:
        shown = "".join(_clip(number, clip) for number, clip in enumerate(clips, 1))
        parts.append(section("clips", f"Frames of {len(clips)} usable clips", shown))
    return document(description.title, "\n".join(part for part in parts if part))


def _section(of: Table) -> str:
    numbers = [column for column in range(len(of.header)) if of.is_number(column)]
    notes = "".join(map(note, of.notes))
    return section("", of.title, table(of.header, of.rows, numbers), notes, is_wide=len(of.header) > 4)


def _clip(number: int, clip: SheetClip) -> str:
    row = clip.row
    facts = f"{row.width}x{row.height}"
    facts += "" if row.decoder == "image" else f", {row.fps:.4g} fps, {row.end_s - row.start_s:.3g} s"
    title = f"{number}. {row.uri}: row {row.clip_id}, {facts}"
    if clip.jpeg is None:
        return note(f"{title}: {clip.reason}")
    moments = [f"at {moment:.0%}" for moment in MOMENTS[: clip.num_frames]]
    return player(Film(title, clip.jpeg, "jpeg", tuple(moments), FRAME_PX), number)
