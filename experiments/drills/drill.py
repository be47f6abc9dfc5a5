"""Drills: spoilt files, mistakes and hostile input, each case a command that must refuse in one line or be unaffected.

    python experiments/drills/drill.py --workdir runs/drill
    python experiments/drills/drill.py --workdir runs/drill --only mistakes
    python experiments/drills/drill.py --workdir runs/drill --tiny

Prints a table of outcomes, and one line for each failure:
  refused     one line on standard error that begins with "error: ", exit code 2
  unaffected  the same texts, figures or parameters as without the fault
  traceback   anything else on standard error, another exit code, or a crash
  hang        no end within two minutes
  silent      another result without a word
  memory      more than 3 GiB
The results of all cases are in WORKDIR/results.json. The exit code is 1 if a case failed.
"""

import argparse
import collections
import dataclasses
import importlib
import json
import os
import pkgutil
import random
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports JAX

import hostile
import mistakes
import spoilt
from harness import FAILURES, OUTCOMES, Case, Drill

import kd_jax

KINDS = {"spoilt": spoilt.cases, "mistakes": mistakes.cases, "hostile": hostile.cases}


def select(kinds: list[str], tiny: bool, count: int, pattern: str, run: Path) -> dict[str, list[Case]]:
    """Return the cases of each kind; `tiny` and `count` choose evenly spread ones at random, the same every time."""
    selected = {}
    for kind in kinds:
        cases = [case for case in KINDS[kind](run) if pattern in case.name]
        most = 8 if tiny else count
        selected[kind] = random.Random(0).sample(cases, most) if 0 < most < len(cases) else cases
    return selected


def main() -> int:
    """Run the drill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="folder for the run, its copies and results.json")
    parser.add_argument("--only", choices=KINDS, help="one kind of cases")
    parser.add_argument("--cases", type=int, default=0, help="so many of each kind, at random; 0 for all")
    parser.add_argument("--name", default="", help="cases whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="eight of each kind")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    workdir = options.workdir.resolve()
    os.environ.setdefault("KD_JAX_CACHE", str(workdir / "programs"))
    drill = Drill(workdir)
    import_everything()
    kinds = [options.only] if options.only else list(KINDS)
    results, counts = [], {}
    for kind, cases in select(kinds, options.tiny, options.cases, options.name, workdir / "intact").items():
        outcomes: collections.Counter[str] = collections.Counter()
        for number, case in enumerate(cases, 1):
            result = drill.run(case)
            outcomes[result.outcome] += 1
            results.append({"kind": kind, **dataclasses.asdict(result)})
            if result.outcome in FAILURES:
                shown = result.error.strip().split("\n")[-1][:300]
                print(f"{result.outcome}: {kind}: {case.name} ({result.code}): {shown!r}", flush=True)
            if number % 50 == 0:
                print(f"{kind}: {number}/{len(cases)}", file=sys.stderr, flush=True)
        counts[kind] = outcomes
        (workdir / "results.json").write_text(json.dumps(results, indent=1))
    print(table(counts))
    return int(any(outcomes[name] for outcomes in counts.values() for name in FAILURES))


def table(counts: dict[str, collections.Counter[str]]) -> str:
    """Return the outcomes of each kind as Markdown."""
    total = sum(counts.values(), collections.Counter())
    rows = [["cases", "number", *OUTCOMES], ["---", *["---:"] * (1 + len(OUTCOMES))]]
    for kind, outcomes in {**counts, "all": total}.items():
        rows.append([kind, str(outcomes.total()), *(str(outcomes[name]) for name in OUTCOMES)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def import_everything() -> None:
    """Import what commands import, so that a forked child starts at once; no JAX backend is started."""
    for module in pkgutil.walk_packages(kd_jax.__path__, "kd_jax."):
        if module.name != "kd_jax.__main__":
            importlib.import_module(module.name)


if __name__ == "__main__":
    sys.exit(main())
