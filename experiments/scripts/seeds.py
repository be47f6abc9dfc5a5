"""One experiment on several seeds: does the distilled student pass the one trained alone, every time?

    python experiments/scripts/seeds.py experiments/configs/quickstart.py --workdir runs/seeds --seeds 0 1 2

Each seed is a run of its own below the workdir; a finished one is only read. Prints a row per seed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Runs what is missing, then prints the rows; writes them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="where the rows are written")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        workdir = arguments.workdir.resolve() / f"seed{seed}"
        command = [sys.executable, "-m", "kd_jax", "run", str(arguments.config.resolve()), "--workdir", str(workdir)]
        subprocess.run([*command, "--seed", str(seed)], cwd=ROOT, check=True)
        report = json.loads((workdir / "report" / "report.json").read_text())
        models = report["models"]
        apart = models["student_kd"]["bleu_ci"][0] > models["student_scratch"]["bleu_ci"][1]
        row = {"seed": seed, "seconds": sum(report["wall_seconds"].values()), "gap_recovered": report["gap_recovered"]}
        rows.append(row | {name: model["bleu"] for name, model in models.items()} | {"intervals_apart": apart})
    print("\n| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
