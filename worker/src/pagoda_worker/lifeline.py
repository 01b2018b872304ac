"""How a process that another one started lives and ends: with its parent, whatever happens to either. Called by the entries of such
processes; knows nothing else."""

import ctypes
import faulthandler
import signal
import sys


def die_with_parent() -> None:
    """Linux kills this process with its parent (with the thread that started it), even while it cannot read the socket between them
    (stopped, or inside a kernel)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def leave_signals_to_parent() -> None:
    """A terminal's Ctrl-C or a stop of the whole process group reaches the parent too, which ends this one when it is time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
