"""What does each kind of the teacher's knowledge add, at equal steps? Paired differences with intervals and verdicts.

    python experiments/scripts/ablation.py --workdir runs/ablation

Each seed is a run of its own below the workdir (a finished one is only read). Students are compared on the
same test sentences: sentences are resampled in pairs, within each seed, and the seeds' differences averaged.
"better": the 95% interval lies above 0 and every seed's difference is positive; "not better": it lies at or
below 0; "unclear": anything else. Two seeds say little about the variance between trainings: read "better" as
"better on these sentences with these seeds".
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from sacrebleu.metrics import BLEU

ROOT = Path(__file__).parents[2]
CONTROLS = ("shrink_finetune", "ce_smoothed")
RESAMPLES = 1000
FIGURES = ("bleu", "kl_to_teacher", "agreement", "acceptance", "calibration_error")


def statistics(path: Path) -> np.ndarray:
    """[sentences, 10]: each translation's n-gram matches, n-grams, length and reference length."""
    bleu, rows = BLEU(effective_order=True), [json.loads(line) for line in path.read_text().splitlines()]
    scores = [bleu.sentence_score(row["greedy"], [row["reference"]]) for row in rows]
    return np.asarray([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in scores])


def corpus_bleu(added: np.ndarray) -> float:
    """BLEU of added statistics, as sacreBLEU computes it."""
    counts, totals, (system, reference) = added[:4].tolist(), added[4:8].tolist(), added[8:]
    return BLEU.compute_bleu(counts, totals, int(system), int(reference), smooth_method="exp").score


def paired(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, object]:
    """Mean difference in BLEU over the seeds, its 95% interval, each seed's difference, and a verdict."""
    rng = np.random.default_rng(0)
    each = [corpus_bleu(a.sum(0)) - corpus_bleu(b.sum(0)) for a, b in zip(ours, theirs, strict=True)]
    drawn = []
    for _ in range(RESAMPLES):
        differences = []
        for a, b in zip(ours, theirs, strict=True):
            chosen = rng.integers(0, len(a), len(a))
            differences.append(corpus_bleu(a[chosen].sum(0)) - corpus_bleu(b[chosen].sum(0)))
        drawn.append(np.mean(differences))
    low, high = np.percentile(drawn, [2.5, 97.5])
    verdict = "better" if low > 0 and min(each) > 0 else "not better" if high <= 0 else "unclear"
    return {
        "difference": float(np.mean(each)),
        "interval": [float(low), float(high)],
        "seeds": each,
        "verdict": verdict,
    }


def main() -> None:
    """Runs what is missing, prints both tables, writes them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "experiments/configs/ablation.py")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--json", type=Path, help="where both tables are written")
    arguments, overrides = parser.parse_known_args()
    folders = []
    for seed in arguments.seeds:
        workdir = arguments.workdir.resolve() / f"seed{seed}"
        command = [sys.executable, "-m", "kd_jax", "run", str(arguments.config.resolve()), "--workdir", str(workdir)]
        subprocess.run([*command, "--seed", str(seed), *overrides], cwd=ROOT, check=True)
        folders.append(workdir)
    reports = [json.loads((folder / "report" / "report.json").read_text())["models"] for folder in folders]
    names = list(reports[0])
    found = {name: [statistics(folder / "evaluation" / f"{name}.jsonl") for folder in folders] for name in names}

    print("\n| model | " + " | ".join(f"{key}, seeds {arguments.seeds}" for key in FIGURES) + " |")
    print("| --- " * (1 + len(FIGURES)) + "|")
    table = {name: {key: [report[name][key] for report in reports] for key in FIGURES} for name in names}
    for name, figures in table.items():
        cells = [" / ".join(f"{x:.2f}" if key == "bleu" else f"{x:.3f}" for x in xs) for key, xs in figures.items()]
        print(f"| {name} | " + " | ".join(cells) + " |")

    print("\n| student | " + " | ".join(f"BLEU against {control} [95%] | verdict" for control in CONTROLS) + " |")
    print("| --- " * (1 + 2 * len(CONTROLS)) + "|")
    pairs = {}
    for name in names:
        if name == "teacher":
            continue
        pairs[name] = {control: paired(found[name], found[control]) for control in CONTROLS if control != name}
        cells = []
        for control in CONTROLS:
            if control == name:
                cells += ["–", "–"]
                continue
            one = pairs[name][control]
            low, high = one["interval"]
            cells += [f"{one['difference']:+.2f} [{low:+.2f}, {high:+.2f}]", one["verdict"]]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": table, "paired": pairs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
