"""Prepare the process that decoding processes are forked from: it alone imports this module, before all else.

Slurm, systemd and `kill %1` send SIGTERM, and a terminal that closes SIGHUP, to every process of a job. The trainer
still needs batches until it has saved. What is ignored here is ignored by all who are forked; they end when the trainer
does, for the pipes that they wait at close then.
"""

from __future__ import annotations

import signal

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, signal.SIG_IGN)
