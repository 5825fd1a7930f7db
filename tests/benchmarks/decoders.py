"""Every decoder at random access beside decoding in order: which frames are right, what hangs, how fast it is.

python tests/benchmarks/decoders.py FOLDER ... [--files N] [--beside OTHER] [--each]

--beside: a folder with the other package that brings the module `decord`, for the two may not be installed together:
pip install --no-deps --target OTHER decord2. --files: of each folder, evenly. --each: a line for every file too.

A file is read in a process that is killed after 60 s without a sign of life: frames by themselves, and clips of 16
frames, each by a decoder that is opened anew, as training does. A frame is right if it is like PyAV's of that number,
decoded in order from the start, and like none of its neighbours, as the index has it. Times are of all cores together,
which a busy machine changes little; the decoders alternate by file.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from importlib import metadata
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np

from data_prep.child import Child, ChildLost, Message, Say, serve
from data_prep.listing.entry import VIDEO_EXTENSIONS, Entry
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.random_access import CANDIDATES, mean_differences, small
from data_prep.scanning.scan import scan
from vjepa.data.clip_index import IndexRow
from vjepa.data.decode import read_frames
from vjepa.data.media import DecodeError

DEADLINE_S = 60.0
MOST_FRAMES = 300  # of a file
NUM_SINGLES, NUM_CLIPS, NUM_FRAMES = 16, 4, 16
NEIGHBOURS, MOST_LEVELS, TIE_LEVELS = 3, 12.0, 0.05  # as in data_prep/scanning/random_access.py


def answer(request: Message, say: Say) -> None:
    """Read one file by one decoder: say the name of its package, then how each read went."""
    row = row_of(Path(request["path"]))
    say(package=package_of(request["decoder"]))
    if row is None:
        return
    num = min(row.num_frames, MOST_FRAMES)
    true = [small(frame) for frame in read_frames(row, np.arange(num))]
    row, spread = dataclasses.replace(row, decoder=request["decoder"]), max(1, num // NUM_SINGLES)
    singles = [[i] for i in np.random.default_rng(0).permutation(np.arange(num)[::spread]).tolist()]
    stride = 2 if num > 2 * NUM_FRAMES else 1
    starts = np.linspace(0, max(0, num - stride * NUM_FRAMES), NUM_CLIPS).astype(int).tolist()
    for ids in (*singles, *(list(range(start, num, stride))[:NUM_FRAMES] for start in starts)):
        begin_s = process_time()
        try:
            frames = read_frames(row, np.array(ids))
            taken_s = process_time() - begin_s
            right = sum(is_right(i, frame, true) for i, frame in zip(ids, frames, strict=True))
            say(frames=len(ids), right=right, clip_ms=1e3 * taken_s if len(ids) > 1 else None)
        except DecodeError as error:
            say(frames=0, refused=str(error))


def row_of(path: Path) -> IndexRow | None:
    """Describe the first clip of a file, to be read in order; None for a file that cannot be used."""
    found = scan(Entry(str(path), path.name), ScanOptions(), excluded=CANDIDATES)[0] | {"clip_id": 0}
    if found["status"] != "ok":
        return None
    columns = {"uri": str(path), "offset": None, "length": None} | found
    columns["times_s"] = None if columns["times_s"] is None else np.array(columns["times_s"])
    return IndexRow(
        **{field.name: columns[field.name] for field in dataclasses.fields(IndexRow) if field.name in columns}
    )


def is_right(i: int, frame: np.ndarray, true: list[np.ndarray]) -> bool:
    """Tell whether uint8 [H, W, 3] is frame `i` of `true`, thinned out, and not a neighbour."""
    near = range(max(0, i - NEIGHBOURS), min(len(true), i + NEIGHBOURS + 1))
    away = mean_differences(np.stack([true[j] for j in near]), small(frame))
    return bool(away[i - near.start] <= min(MOST_LEVELS, away.min() + TIE_LEVELS))


def package_of(decoder: str) -> str:
    """Name the package of a decoder and its version, of two that bring one module the one that is found first."""
    name = {"pyav_seek": "av", "pyav": "av"}.get(decoder, decoder)
    found = metadata.packages_distributions()[name][0]
    return f"{decoder} ({found} {metadata.version(found)})"


@dataclasses.dataclass
class Reader:
    """A decoder in a process of its own, and what became of the files so far."""

    decoder: str
    child: Child
    name: str = ""
    counts: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("right", "wrong", "refused", "late", "crashed", "failed"), 0)
    )
    frames: int = 0
    frames_right: int = 0
    clip_ms: dict[Path, float] = dataclasses.field(default_factory=dict)  # of files that are right

    def read(self, path: Path) -> str:
        """Read a file and say what came of it, in words."""
        messages, lost = [], None
        try:
            for message in self.child.ask({"path": str(path), "decoder": self.decoder}, DEADLINE_S):
                self.name = message.get("package", self.name)
                messages.append(message)
        except ChildLost as error:
            lost = error
        reads = [message for message in messages if "frames" in message]
        if not reads and lost is None:
            return "no video"
        frames, right = sum(read["frames"] for read in reads), sum(read.get("right", 0) for read in reads)
        refused = [read["refused"] for read in reads if "refused" in read]
        how = lost.how if lost else "wrong" if right < frames else "refused" if refused else "right"
        self.counts[how] += 1
        self.frames, self.frames_right = self.frames + frames, self.frames_right + right
        took_ms = median([read["clip_ms"] for read in reads if read.get("clip_ms")] or [0.0])
        if how == "right":
            self.clip_ms[path] = took_ms
        reason = f"; {len(refused)} reads refused: {refused[0]}" if refused else f"; {lost}" if lost else ""
        return f"{how}: {right} of {frames} frames are right, {took_ms:.1f} ms a clip{reason}"


def files_of(folder: Path, most: int | None) -> list[Path]:
    """List the videos of a folder, or as many of them, evenly."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_EXTENSIONS)
    return files if most is None else [files[i] for i in np.unique(np.linspace(0, len(files) - 1, most).astype(int))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--files", type=int)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    installed = metadata.packages_distributions()
    readers = [
        Reader(name, Child(__file__, "--answer")) for name in CANDIDATES if name in installed or name == "pyav_seek"
    ]
    if options.beside:
        program = f"import sys, runpy; sys.path.insert(0, {str(options.beside)!r}); sys.argv.append('--answer')"
        program += f"; runpy.run_path({__file__!r}, run_name='__main__')"
        readers.insert(1, Reader("decord", Child("-c", program)))
    for path in (path for folder in options.folders for path in files_of(folder, options.files)):
        said = [reader.read(path) for reader in readers]
        if options.each:
            print(
                path.name, *(f"  {reader.name}: {words}" for reader, words in zip(readers, said, strict=True)), sep="\n"
            )
    common, first = set.intersection(*(set(reader.clip_ms) for reader in readers)), readers[0]
    for reader in readers:
        reader.child.close()
        ratio = median([reader.clip_ms[path] / first.clip_ms[path] for path in common]) if common else float("nan")
        counts = ", ".join(f"{count} {how}" for how, count in reader.counts.items())
        print(
            f"{reader.name}: files {counts}; {reader.frames_right} of {reader.frames} frames right; {ratio:.2f} of the "
            f"time of {first.name} a clip, median of the {len(common)} files that all read right"
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["--answer"]:
        serve(answer)
    else:
        main()
