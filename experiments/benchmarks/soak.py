"""Measure whether the memory of a training process grows with its steps.

    python experiments/benchmarks/soak.py --json soak.json
    python experiments/benchmarks/soak.py --minutes 2          # a quick check

The command `teacher` of an experiment (smoke) runs in its own process, with batches from disk, validation, checkpoints
and the metrics log, until SIGTERM stops it. Every second the benchmark samples its resident memory and the last step of
its log. The line is fitted to the samples after a third of the time, when every program is compiled. The slope's
standard error assumes independent errors.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[2]
ENDLESS = 1_000_000  # steps; the process is stopped before
SAMPLE_INTERVAL = 1.0  # seconds
WARM_UP = 1 / 3  # share of the time whose samples are not fitted


def resident(process: int) -> int:
    """Return a process's resident memory in KiB (Linux only)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def last_step(log: Path) -> int:
    """Return the step of the last complete row; 0 before the first row."""
    rows = log.read_bytes().rpartition(b"\n")[0] if log.exists() else b""
    return json.loads(rows.rpartition(b"\n")[2])["step"] if rows else 0


def collect_samples(command: list[str], log: Path, seconds: float) -> list[tuple[float, int, int]]:
    """Run the command and return samples (seconds since the log's first row, step, KiB).

    The process is stopped `seconds` after the first row.
    """
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    samples, start_time = [], None
    try:
        while child.poll() is None and (start_time is None or time.monotonic() - start_time < seconds):
            time.sleep(SAMPLE_INTERVAL)
            step = last_step(log)
            if step and child.poll() is None:
                start_time = start_time or time.monotonic()
                samples.append((time.monotonic() - start_time, step, resident(child.pid)))
    finally:
        child.terminate()
    if child.wait():
        raise SystemExit(
            f"{' '.join(command)}: expected exit status 0, got {child.returncode}. "
            "Run the command alone to see its error."
        )
    return samples


def main() -> None:
    """Print the slope, and write the samples to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the samples")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--config", type=Path, default=ROOT / "experiments/configs/smoke.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args = [str(arguments.config.absolute()), "--workdir", folder, "--teacher.training.steps", str(ENDLESS)]
        command = [sys.executable, "-m", "kd_jax"]
        subprocess.run([*command, "prepare", *args], cwd=ROOT, check=True)
        samples = collect_samples(
            [*command, "teacher", *args], Path(folder) / "teacher/metrics.jsonl", 60 * arguments.minutes
        )
    _, steps, kib = np.array([sample for sample in samples if sample[0] >= WARM_UP * 60 * arguments.minutes]).T
    fit = stats.linregress(steps / 1000, kib)
    print(
        f"{arguments.minutes:g} minutes, {samples[-1][1]} steps; of the last {steps[-1] - steps[0]:.0f} steps: "
        f"{kib[0] / 1024:,.0f} MiB at the start, {kib[-1] / 1024:,.0f} MiB at the end; "
        f"{fit.slope:+.1f} +- {fit.stderr:.1f} KiB per 1000 steps"
    )
    if arguments.json:
        figures = {"slope": fit.slope, "error": fit.stderr, "samples": samples}
        arguments.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
