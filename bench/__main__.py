"""Measurements of layerfs beside its peers.

python -m bench list                    the scenarios
python -m bench SCENARIO [options]      run one; --help after its name tells its options
python -m bench report                  the newest results of all as Markdown, and as a page with plots
python -m bench compare A.json B.json   two results of one scenario: what became slower
"""

from __future__ import annotations

import importlib
import sys

SCENARIOS = ("load", "pull", "mount", "resolve", "storm", "fuse", "changes")
OTHERS = ("report", "compare")


def main() -> int:
    """Run one scenario, or what looks at results."""
    words = sys.argv[1:]
    if words[:1] == ["list"]:
        for name in SCENARIOS:
            print((importlib.import_module(f"bench.{name}").__doc__ or "").partition("\n")[0])
        return 0
    if words and words[0] in (*SCENARIOS, *OTHERS):
        return importlib.import_module(f"bench.{words[0]}").main(words[1:]) or 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
