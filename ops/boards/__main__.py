"""Grafana boards and example rules from code: `python ops/boards [--check]`, with Pagoda's own environment (make setup).

Without a word it writes charts/pagoda/files (boards, and a copy of ops/rules/alerts.yaml) and ops/rules/slo-example.yaml. With --check it
writes nothing and fails when any of them is not what it would write.
"""

import sys

from boards.files import ROOT, outdated, write


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        stale = [str(path.relative_to(ROOT)) for path in outdated()]
        if stale:
            print(f"ops/boards: not up to date: {', '.join(stale)}: run make boards", file=sys.stderr)
        return 1 if stale else 0
    if sys.argv[1:]:
        print(f"ops/boards: {' '.join(sys.argv[1:])!r} is not known: write nothing, or --check", file=sys.stderr)
        return 2
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
