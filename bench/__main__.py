"""Measurements of layerfs beside its peers.

python -m bench list                          the scenarios
python -m bench run SCENARIO [--on WORDS]     measure one, or only its variants with such words in their names
python -m bench run SCENARIO --help           what else it takes
python -m bench all                           measure every scenario, and make the report
python -m bench report                        the newest results of all as Markdown, and as a page with plots
python -m bench compare A.json B.json         two results of one scenario: what became slower
python -m bench check                         the ratios that README states, measured again
python -m bench profile JOB                   where the time of one job goes, as a flame graph
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

from bench.measure import common_options, end_on_signals

SCENARIOS = (
    "load", "pull", "mount", "resolve", "lookup", "storm", "read", "fuse", "changes", "upkeep", "start", "memory",
    "scaling",
)  # fmt: skip
#: How ``all`` runs a scenario, where not once and whole: the largest images and most sizes, which are left to those who
#: measure one, would take two hours.
SMALLER = {
    "load": ["--image python-app --form gzip", "--image demo --form zstd --form docker-archive"],
    "pull": ["--image demo"],
    "storm": ["--image demo"],
    "fuse": ["--image demo --on layerfs,fuse-overlayfs,kernel"],
    "memory": ["--walked demo --rounds 1"],  # bytes, which chance does not change
    "upkeep": ["--image demo --image deep-101"],
}
OTHERS = ("report", "compare", "check", "profile")


def _all(options: list[str]) -> int:
    """Measure every scenario in a process of its own, so that none starts with the memory of another."""
    parser = common_options("all", "measure every scenario, and make the report", rounds=5)
    parser.prog = "python -m bench all"
    parser.parse_args(options)  # what is wrong is said before anything is measured
    failed = []
    runs = [(name, words) for name in SCENARIOS for words in SMALLER.get(name, [""])]
    for name, words in runs:
        print(f"\n## {name} {words}".rstrip(), flush=True)
        child = subprocess.Popen([sys.executable, "-m", "bench", "run", name, *words.split(), *options])
        try:
            if child.wait():
                failed.append(name)
        except BaseException:
            child.terminate()
            child.wait()
            raise
    importlib.import_module("bench.report").main([])
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Run one scenario, or what looks at results."""
    # What is measured starts as an installed program does: its modules are compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    words = sys.argv[1:]
    if words[:1] == ["list"]:
        for name in SCENARIOS:
            print((importlib.import_module(f"bench.{name}").__doc__ or "").partition("\n")[0])
        return 0
    if words[:1] == ["all"]:
        end_on_signals()
        return _all(words[1:])
    known = {*SCENARIOS, *OTHERS}
    if words[:1] == ["run"]:
        words = words[1:]
        known = {*SCENARIOS}
    if words and words[0] in known:
        end_on_signals()
        return importlib.import_module(f"bench.{words[0]}").main(words[1:]) or 0
    if words in (["--help"], ["-h"], ["help"]):
        print(__doc__)
        return 0
    if words:
        print(f"bench: there is no {' '.join(words[:1])!r}\n", file=sys.stderr)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
