"""Measurements of layerfs beside its peers.

python -m bench list                          the scenarios
python -m bench run SCENARIO [--on WORDS]     measure one, or only its variants with such words in their names
python -m bench run SCENARIO --help           what else it takes
python -m bench report                        the newest results of all as Markdown, and as a page with plots
python -m bench compare A.json B.json         two results of one scenario: what became slower
python -m bench check                         the ratios that README states, measured again
python -m bench profile JOB                   where the time of one job goes, as a flame graph
"""

from __future__ import annotations

import importlib
import signal
import sys

SCENARIOS = (
    "load", "pull", "mount", "resolve", "lookup", "storm", "read", "fuse", "changes", "upkeep", "start", "memory",
    "scaling",
)  # fmt: skip
OTHERS = ("report", "compare", "check", "profile")


def main() -> int:
    """Run one scenario, or what looks at results."""
    # So that whoever ends it with a signal is left no mounts and loop devices either.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    words = sys.argv[1:]
    if words[:1] == ["list"]:
        for name in SCENARIOS:
            print((importlib.import_module(f"bench.{name}").__doc__ or "").partition("\n")[0])
        return 0
    known = {*SCENARIOS, *OTHERS}
    if words[:1] == ["run"]:
        words = words[1:]
        known = {*SCENARIOS}
    if words and words[0] in known:
        return importlib.import_module(f"bench.{words[0]}").main(words[1:]) or 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
