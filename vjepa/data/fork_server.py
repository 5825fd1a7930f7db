"""Prepare the process that decoding processes are forked from: it alone imports this module, before all else."""

from __future__ import annotations

from vjepa.data.stops import outlive_stops

outlive_stops()
