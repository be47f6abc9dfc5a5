"""Measure how often an interval over seeds and examples holds the true difference.

    python experiments/benchmarks/intervals.py --json intervals.json

Differences are drawn with a normal effect of each seed and one of the examples; the true difference is 0. `ratio` is
the seeds' part of the variance of the mean difference over the examples' part. The rule of Cochran and Cox, with which
`ablate` computes its intervals, is compared with the degrees of freedom of Welch and Satterthwaite. "Better" is the
verdict of `ablate`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from scipy.special import stdtrit

from kd_jax.reporting.paired import BETTER, interval, verdict

EXAMPLES = 1000
SEEDS = (2, 3, 5, 10)
RATIOS = (0.0, 0.1, 1.0, 10.0, 100.0)
Interval = Callable[[np.ndarray, float, int], tuple[float, float]]


def welch(each_S: np.ndarray, over_examples: float, examples: int) -> tuple[float, float]:
    """Return the interval with the degrees of freedom of Welch and Satterthwaite."""
    seeds, over_seeds = len(each_S), each_S.var(ddof=1) / len(each_S)
    total = over_examples + over_seeds
    freedom = total**2 / (over_examples**2 / (examples - 1) + over_seeds**2 / (seeds - 1))
    half = float(stdtrit(freedom, 0.975)) * total**0.5
    return each_S.mean() - half, each_S.mean() + half


RULES: dict[str, Interval] = {"cochran_cox": interval, "welch": welch}


def measure(rule: Interval, seeds: int, ratio: float, trials: int) -> tuple[float, float]:
    """Return (share of intervals that hold the true difference, share of verdicts "better")."""
    rng = np.random.default_rng(0)
    each_TS = rng.normal(size=(trials, 1)) + (ratio * seeds) ** 0.5 * rng.normal(size=(trials, seeds))
    over_examples_T = rng.chisquare(EXAMPLES - 1, trials) / (EXAMPLES - 1)
    covered = better = 0
    for each_S, over_examples in zip(each_TS, over_examples_T.tolist(), strict=True):
        low, high = rule(each_S, over_examples, EXAMPLES)
        covered += low <= 0 <= high
        better += verdict(each_S, low, high, True) == BETTER
    return covered / trials, better / trials


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--trials", type=int, default=100_000)
    arguments = parser.parse_args()
    rows = []
    for seeds in SEEDS:
        for ratio in RATIOS:
            row: dict[str, float] = {"seeds": seeds, "ratio": ratio}
            for name, rule in RULES.items():
                row[f"{name}_covers"], row[f"{name}_better"] = measure(rule, seeds, ratio, arguments.trials)
            rows.append(row)
            print(", ".join(f"{name} {value:g}" for name, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
