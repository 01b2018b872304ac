"""Becomes another program after two things only a child can do to itself. Standard library only: it is run by path, without site-packages,
so that it costs milliseconds. Called by processes.py (--die-with) and launch.py (--detach).

    python -I -S spawn.py --die-with PARENT_PID -- PROGRAM ARGUMENT…    SIGTERM when the parent dies, however it dies
    python -I -S spawn.py --detach -- PROGRAM ARGUMENT…                 a new session, reparented: the caller leaves no child behind
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """The request survives exec. The parent may already have died between fork and here, in which case no signal would ever come."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit(f"spawn: the parent {parent_pid} is gone")


def detach() -> None:
    if os.fork() != 0:
        os._exit(0)
    os.setsid()


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    options, program = arguments[:split], arguments[split + 1 :]
    if options == ["--detach"]:
        detach()
    elif options[:1] == ["--die-with"]:
        die_with(int(options[1]))
    else:
        sys.exit(f"spawn: unknown options {options}")
    os.execvp(program[0], program)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
