"""``python -m bench SCENARIO [options]``: load, pull, mount, resolve, storm, fuse, changes, or list."""

from __future__ import annotations

import importlib
import sys

SCENARIOS = ("load", "pull", "mount", "resolve", "storm", "fuse", "changes")


def main() -> int:
    """Run one scenario; its options are its own (``--help`` after its name)."""
    words = sys.argv[1:]
    if not words or words[0] not in SCENARIOS:
        print(__doc__, file=sys.stderr)
        for name in SCENARIOS:
            print("  " + (importlib.import_module(f"bench.{name}").__doc__ or "").partition("\n")[0], file=sys.stderr)
        return 0 if words[:1] == ["list"] else 2
    importlib.import_module(f"bench.{words[0]}").main(words[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
