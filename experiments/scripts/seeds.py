"""One experiment on several seeds: does the distilled student pass the baseline of its comparison, every time?

    python experiments/scripts/seeds.py experiments/configs/quickstart.py --workdir runs/seeds --seeds 0 1 2

Each seed is a run of its own below the workdir; a finished one is only read. Prints a row per seed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from kd_jax import load
from kd_jax.artifacts.manifest import read_json
from kd_jax.artifacts.workdir import Workdir
from kd_jax.evaluation.verdict import PASSES, relation

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Runs what is missing, then prints the rows; writes them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="where the rows are written")
    arguments = parser.parse_args()
    if load(arguments.config).comparison is None:
        parser.error(
            f"{arguments.config} compares no two students; wanted comparison=Comparison(baseline=, distilled=)"
        )
    rows = []
    for seed in arguments.seeds:
        workdir = Workdir(arguments.workdir.resolve() / f"seed{seed}")
        words = ["run", str(arguments.config.resolve()), "--workdir", str(workdir.path), "--seed", str(seed)]
        subprocess.run([sys.executable, "-m", "kd_jax", *words], cwd=ROOT, check=True)
        report = read_json(workdir.report.file("report.json"))
        models, comparison, metric = report["models"], report["comparison"], report["headline"]
        passes = relation(models[comparison["distilled"]], models[comparison["baseline"]], metric) == PASSES
        row = {"seed": seed, "seconds": sum(report["wall_seconds"].values()), "gap_recovered": report["gap_recovered"]}
        rows.append(row | {name: model[metric["name"]] for name, model in models.items()} | {"intervals_apart": passes})
    print("\n| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
