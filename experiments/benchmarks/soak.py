"""Does the memory of a training process grow? Minutes of steps, with its resident memory beside them.

    python experiments/benchmarks/soak.py --json soak.json
    python experiments/benchmarks/soak.py --minutes 2          # a try

The command `teacher` of an experiment (smoke), in a process of its own, with batches from disk, validations,
checkpoints and the log, as its users run it; it is asked to stop by SIGTERM. Every second its resident memory and the
step that its log has come to are noted; what is fitted is what came after a third of the time, when every program is
compiled. The slope's standard error is that of a straight line with independent errors.
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
ENDLESS = 1_000_000  # steps; it is stopped long before
SAMPLED_EVERY = 1.0  # seconds
SETTLED = 1 / 3  # of the time, that is left out


def resident(process: int) -> int:
    """KiB of a process that lie in memory; Linux alone says so."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def last_step(log: Path) -> int:
    """The last whole row's; 0 before the first."""
    whole = log.read_bytes().rpartition(b"\n")[0] if log.exists() else b""
    return json.loads(whole.rpartition(b"\n")[2])["step"] if whole else 0


def samples(command: list[str], log: Path, seconds: float) -> list[tuple[float, int, int]]:
    """(seconds since the first row of the log, step, KiB), until the time is over; the process has ended then."""
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    taken, began = [], None
    try:
        while child.poll() is None and (began is None or time.monotonic() - began < seconds):
            time.sleep(SAMPLED_EVERY)
            step = last_step(log)
            if step and child.poll() is None:
                began = began or time.monotonic()
                taken.append((time.monotonic() - began, step, resident(child.pid)))
    finally:
        child.terminate()
    if child.wait():
        raise SystemExit(f"{' '.join(command)}: ended with {child.returncode}; call it by itself to see why")
    return taken


def main() -> None:
    """Prints the slope; writes the samples to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the samples are written")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--config", type=Path, default=ROOT / "experiments/configs/smoke.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [str(arguments.config.absolute()), "--workdir", folder, "--teacher.training.steps", str(ENDLESS)]
        command = [sys.executable, "-m", "kd_jax"]
        subprocess.run([*command, "prepare", *words], cwd=ROOT, check=True)
        taken = samples([*command, "teacher", *words], Path(folder) / "teacher/metrics.jsonl", 60 * arguments.minutes)
    _, steps, kib = np.array([one for one in taken if one[0] >= SETTLED * 60 * arguments.minutes]).T
    fit = stats.linregress(steps / 1000, kib)
    print(
        f"{arguments.minutes:g} minutes, {taken[-1][1]} steps; the last {steps[-1] - steps[0]:.0f} of them: "
        f"{kib[0] / 1024:,.0f} MiB at first, {kib[-1] / 1024:,.0f} at last; "
        f"{fit.slope:+.1f} +- {fit.stderr:.1f} KiB in 1000 steps"
    )
    if arguments.json:
        figures = {"slope": fit.slope, "error": fit.stderr, "samples": taken}
        arguments.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
