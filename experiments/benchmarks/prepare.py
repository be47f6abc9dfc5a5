"""Preparing a corpus: pairs a second, and the largest memory of one process and of all together.

    python experiments/benchmarks/prepare.py --pairs 1000000 --processes 1 2 --json prepare.json

Made-up pairs of 5 to 25 words (20,000 words a language, of Zipf's frequencies) are written as one .jsonl into a
temporary folder; 2% each are held out. Then `prepare` runs on it in processes of its own, once for every number in
--processes. Memory: the largest resident set of any process; and of all together, looked at five times a second, with
pages that several share counted once.
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
AT_A_TIME = 10_000  # pairs that are made together


def write_pairs(path: Path, count: int) -> None:
    """That many pairs, one JSON object a line; the same every time."""
    rng = np.random.default_rng(0)
    words = [
        np.asarray(["".join(rng.choice(list(LETTERS), length)) for length in rng.integers(2, 11, WORDS)])
        for _ in range(2)
    ]
    share = 1 / np.arange(1, WORDS + 1)
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, count, AT_A_TIME):
            lengths = rng.integers(5, 26, min(AT_A_TIME, count - start))
            drawn = rng.choice(WORDS, lengths.sum(), p=share / share.sum())
            for numbers in np.split(drawn, np.cumsum(lengths)[:-1]):
                row = {field: " ".join(side[numbers]) for field, side in zip(("en", "fr"), words, strict=True)}
                file.write(json.dumps(row) + "\n")


def prepare(folder: Path, processes: int) -> dict[str, float]:
    """Seconds, and bytes of the largest process and of all together."""
    words = ["prepare", str(folder / "config.py"), "--workdir", str(folder / f"run{processes}")]
    options = ["--processes", str(processes)] if processes > 1 else []
    began, together = time.perf_counter(), 0
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "kd_jax", *words, *options])
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        together = max(together, sum(map(proportional, descendants(pid))))
        time.sleep(0.2)
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    return {
        "processes": processes,
        "seconds": time.perf_counter() - began,
        "largest": 1024 * usage.ru_maxrss,
        "together": together,
    }


def descendants(pid: int) -> list[int]:
    """The process and all that it began, directly or not."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def proportional(pid: int) -> int:
    """Bytes resident of a process, pages that are shared counted by their share; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> None:
    """Prints a row for every number of processes; writes them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model-type", default="unigram", help="of the SentencePiece of 8,000 pieces")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "train.jsonl"
        parts = {"smoke": str(ROOT / "experiments/configs/smoke.py"), "path": str(path)}
        (folder / "config.py").write_text(CONFIG.format(**parts, model_type=arguments.model_type))
        write_pairs(path, arguments.pairs)
        print(f"{arguments.pairs:,} pairs, {path.stat().st_size / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}")
        for processes in arguments.processes:
            row = {"pairs": arguments.pairs} | prepare(folder, processes)
            rows.append(row)
            rate = arguments.pairs / row["seconds"]
            print(
                f"{processes} processes: {row['seconds']:.1f} s, {rate:,.0f} pairs a second; "
                f"the largest {row['largest'] / 2**20:.0f} MiB, together {row['together'] / 2**20:.0f} MiB",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
