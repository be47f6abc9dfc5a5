"""What does each kind of the teacher's knowledge add, at equal steps? Paired differences with intervals and verdicts.

    python experiments/scripts/ablation.py --workdir runs/ablation

Each seed is a run of its own below the workdir (a finished one is only read). Students are compared on the
same test sentences: sentences are resampled in pairs, within each seed, and the seeds' differences averaged.
"better": the 95% interval lies above 0 and every seed's difference is positive; "not better": it lies at or
below 0; "unclear": anything else. Two seeds say little about the variance between trainings: read "better" as
"better on these sentences with these seeds". BLEU, since its sums over sentences can be resampled: translation alone.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from sacrebleu.metrics import BLEU

from kd_jax.artifacts.manifest import read_json, read_lines
from kd_jax.artifacts.workdir import TEACHER, Workdir

ROOT = Path(__file__).parents[2]
CONTROLS = ("shrink_finetune", "ce_smoothed")
RESAMPLES = 1000
FIGURES = ("bleu", "kl_to_teacher", "agreement", "acceptance", "calibration_error")


def bleu_statistics(path: Path) -> np.ndarray:
    """[sentences, 10]: each translation's n-gram matches, n-grams, length and reference length."""
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(row["greedy"], [row["reference"]]) for row in read_lines(path)]
    return np.asarray([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in scores])


def corpus_bleu(added: np.ndarray) -> float:
    """BLEU of added statistics, as sacreBLEU computes it."""
    counts, totals, (system, reference) = added[:4].tolist(), added[4:8].tolist(), added[8:]
    return BLEU.compute_bleu(counts, totals, int(system), int(reference), smooth_method="exp").score


def paired(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, Any]:
    """Mean difference in BLEU over the seeds, its 95% interval, each seed's difference, and a verdict."""
    rng = np.random.default_rng(0)
    each = [corpus_bleu(a.sum(0)) - corpus_bleu(b.sum(0)) for a, b in zip(ours, theirs, strict=True)]
    resampled = []
    for _ in range(RESAMPLES):
        differences = []
        for a, b in zip(ours, theirs, strict=True):
            chosen = rng.integers(0, len(a), len(a))
            differences.append(corpus_bleu(a[chosen].sum(0)) - corpus_bleu(b[chosen].sum(0)))
        resampled.append(np.mean(differences))
    low, high = np.percentile(resampled, [2.5, 97.5])
    verdict = "better" if low > 0 and min(each) > 0 else "not better" if high <= 0 else "unclear"
    return {
        "difference": float(np.mean(each)),
        "interval": [float(low), float(high)],
        "seeds": each,
        "verdict": verdict,
    }


def figures_table(figures: Mapping[str, Mapping[str, Sequence[float]]], seeds: Sequence[int]) -> str:
    """Markdown: each model's figures, one a seed."""
    lines = ["| model | " + " | ".join(f"{key}, seeds {seeds}" for key in FIGURES) + " |"]
    lines += ["| --- " * (1 + len(FIGURES)) + "|"]
    for name, of_model in figures.items():
        cells = [" / ".join(f"{x:.2f}" if key == "bleu" else f"{x:.3f}" for x in xs) for key, xs in of_model.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pairs_table(pairs: Mapping[str, Mapping[str, Mapping[str, Any]]], controls: Sequence[str]) -> str:
    """Markdown: each student against each control."""
    lines = ["| student | " + " | ".join(f"BLEU against {control} [95%] | verdict" for control in controls) + " |"]
    lines += ["| --- " * (1 + 2 * len(controls)) + "|"]
    for name, against in pairs.items():
        cells = []
        for control in controls:
            if control not in against:  # itself
                cells += ["–", "–"]
                continue
            pair = against[control]
            low, high = pair["interval"]
            cells += [f"{pair['difference']:+.2f} [{low:+.2f}, {high:+.2f}]", pair["verdict"]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, prints both tables, writes them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "experiments/configs/ablation.py")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--controls", nargs="+", default=CONTROLS, help="students that every other one is compared with"
    )
    parser.add_argument("--json", type=Path, help="where both tables are written")
    arguments, overrides = parser.parse_known_args()
    workdirs = [Workdir(arguments.workdir.resolve() / f"seed{seed}") for seed in arguments.seeds]
    for seed, workdir in zip(arguments.seeds, workdirs, strict=True):
        words = ["run", str(arguments.config.resolve()), "--workdir", str(workdir.path), "--seed", str(seed)]
        subprocess.run([sys.executable, "-m", "kd_jax", *words, *overrides], cwd=ROOT, check=True)
    reports = [read_json(workdir.report.file("report.json"))["models"] for workdir in workdirs]
    figures = {name: {key: [report[name][key] for report in reports] for key in FIGURES} for name in reports[0]}
    print("\n" + figures_table(figures, arguments.seeds))
    scores = {name: [bleu_statistics(w.evaluation.file(f"{name}.jsonl")) for w in workdirs] for name in figures}
    pairs = {
        name: {control: paired(scores[name], scores[control]) for control in arguments.controls if control != name}
        for name in figures
        if name != TEACHER
    }
    print("\n" + pairs_table(pairs, arguments.controls))
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures, "paired": pairs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
