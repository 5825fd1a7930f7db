"""What a process that decodes does when its whole job is asked to stop: nothing.

Slurm, systemd and `kill %1` send SIGTERM, a terminal that closes SIGHUP, and Ctrl-C SIGINT to every process of a job.
The trainer still needs batches until it has saved; those who decode end when it does, for the pipes that they wait at
close then.
"""

from __future__ import annotations

import signal


def outlive_stops() -> None:
    """Ignore these signals in this process, and in those that it forks."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
