"""Films that go together: which row of a clip index is the companion of a row."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np


class Companions:
    """Look up rows by their files."""

    def __init__(
        self, files: Sequence[Sequence[str | None]], usable: np.ndarray, start_s: np.ndarray, end_s: np.ndarray
    ) -> None:
        """Take columns of an index.

        files: the file of each row as it is now, and as it was before it was copied (None: not known). usable: bool
        [n]. start_s, end_s: float64 [n], in seconds.
        """
        self._files, self._start_s, self._end_s = files, start_s, end_s
        self._rows: dict[str, list[int]] = {}
        for names in files:
            for i in np.flatnonzero(usable).tolist():
                if name := names[i]:
                    self._rows.setdefault(os.path.normpath(name), []).append(i)

    def find(self, i: int, name: str) -> int | None:
        """Number the usable row of the file `name`, from the folder of the file of row `i` on; None: there is none.

        Of several, which are parts of a film, it is the one that shows most of the time of row `i`.
        """
        for film in filter(None, (names[i] for names in self._files)):
            rows = self._rows.get(os.path.normpath(os.path.join(os.path.dirname(film), name)), [])
            shared_s = np.minimum(self._end_s[rows], self._end_s[i]) - np.maximum(self._start_s[rows], self._start_s[i])
            if len(rows) == 1 or (rows and shared_s.max() > 0):
                return rows[int(shared_s.argmax())]
        return None
