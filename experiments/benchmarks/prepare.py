"""Measure the preparation of a corpus: pairs per second, and peak memory of one process and of all.

    python experiments/benchmarks/prepare.py --pairs 1000000 --processes 1 2 --json prepare.json

Random pairs of 5 to 25 words (20,000 words per language, with Zipf's frequencies) are written to one .jsonl file in a
temporary folder; 2% of them are validation examples, 2% test examples. Then `prepare` runs once for every number in
--processes. Memory is the largest resident set of any process, and that of all processes together, sampled five times
per second, with shared pages counted once.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
CONFIG = """
import dataclasses
from kd_jax import Files, SentencePiece, load_experiment
tokenizer = SentencePiece(8000, model_type={model_type!r})
experiment = dataclasses.replace(load_experiment({smoke!r}), source=Files(train=({path!r},)), tokenizer=tokenizer)
"""
WORDS, LETTERS = 20_000, "abcdefghijklmnopqrstuvwxyz"
PAIRS_PER_DRAW = 10_000


def write_pairs(path: Path, count: int) -> None:
    """Write random pairs, one JSON object per line; the seed is fixed."""
    rng = np.random.default_rng(0)
    words = [
        np.asarray(["".join(rng.choice(list(LETTERS), length)) for length in rng.integers(2, 11, WORDS)])
        for _ in range(2)
    ]
    share = 1 / np.arange(1, WORDS + 1)
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, count, PAIRS_PER_DRAW):
            lengths = rng.integers(5, 26, min(PAIRS_PER_DRAW, count - start))
            drawn = rng.choice(WORDS, lengths.sum(), p=share / share.sum())
            for numbers in np.split(drawn, np.cumsum(lengths)[:-1]):
                row = {field: " ".join(side[numbers]) for field, side in zip(("en", "fr"), words, strict=True)}
                file.write(json.dumps(row) + "\n")


def prepare(folder: Path, processes: int) -> dict[str, float]:
    """Return the seconds, and the peak bytes of the largest process and of all processes."""
    args = ["prepare", str(folder / "config.py"), "--workdir", str(folder / f"run{processes}")]
    options = ["--processes", str(processes)] if processes > 1 else []
    start_time, total_peak = time.perf_counter(), 0
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "kd_jax", *args, *options])
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        total_peak = max(total_peak, sum(map(proportional_memory, descendants(pid))))
        time.sleep(0.2)
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    return {
        "processes": processes,
        "seconds": time.perf_counter() - start_time,
        "largest": 1024 * usage.ru_maxrss,
        "together": total_peak,
    }


def descendants(pid: int) -> list[int]:
    """Return the process and all its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # the process has ended
            continue
    pids = [pid]
    for ancestor in pids:  # grows while it is read
        pids += [child for child, parent in parents.items() if parent == ancestor]
    return pids


def proportional_memory(pid: int) -> int:
    """Return a process's proportional set size in bytes; 0 after its end."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> None:
    """Print a row for each number of processes, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model-type", default="unigram", help="of SentencePiece with 8,000 pieces")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "train.jsonl"
        smoke = str(ROOT / "experiments/configs/smoke.py")
        config = CONFIG.format(smoke=smoke, path=str(path), model_type=arguments.model_type)
        (folder / "config.py").write_text(config)
        write_pairs(path, arguments.pairs)
        print(f"{arguments.pairs:,} pairs, {path.stat().st_size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}")
        for processes in arguments.processes:
            row = {"pairs": arguments.pairs} | prepare(folder, processes)
            rows.append(row)
            rate = arguments.pairs / row["seconds"]
            print(
                f"{processes} processes: {row['seconds']:.1f} s, {rate:,.0f} pairs/s; "
                f"peak memory of one {row['largest'] / 2**20:.0f} MiB, of all {row['together'] / 2**20:.0f} MiB",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
