"""The `pagoda` command's entry. Imports almost nothing itself: what commands.py needs takes up to a second on a busy machine, and Ctrl-C
in that second has to end the program, not to print where an import was.
"""

import signal
import sys


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pagoda_operator.commands import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))
