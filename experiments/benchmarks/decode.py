"""How fast a student writes in its place: kd_jax, transformers, CTranslate2 and llama.cpp from the same weights.

    python experiments/benchmarks/decode.py --json decode.json

Both families; greedy at batch 1, 32 and 64, and beam 4 at batch 8. `--encoder-decoder` and `--decoder-only` each take a
folder of `kd_jax export` (or another in Hugging Face's layout that we read) and a file with a prompt on each line.
Without them: the shapes of the quickstart's and debian_lm's teachers with random weights, prompts of 16 tokens, and
texts that never end before `--length` tokens (the end's embedding is zero, so its logit is never the largest). The end
of a text counts as a token, padding does not. Beams are compared by their sum of log-probabilities, which is the one
score that all the libraries know.

Every library works in a process of its own on the same --threads cores, and they take turns; medians of --rounds.
transformers and ctranslate2 are found in --others, an interpreter that has them, torch, xllamacpp and gguf. What is not
there is left out, and said so. Where other work keeps the cores busy, libraries whose threads wait for each other lose
most: there --threads 1 and tokens a second of the processor's time, which is shown too, are the fairer comparison.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
import tokenizers
from sides import writers

from kd_jax import load_experiment
from kd_jax.artifacts import manifest
from kd_jax.models.huggingface.write import write_model
from kd_jax.models.transformer import Transformer
from kd_jax.tokenizers.sentencepiece import EOS, PAD, START, UNKNOWN

ROOT = Path(__file__).parents[2]
CONFIGS = {"encoder_decoder": "quickstart", "decoder_only": "debian_lm"}
CASES = {"greedy_1": (1, 16), "greedy_32": (32, 64), "greedy_64": (64, 128), "beam4_8": (8, 32)}  # batch, texts
VOCABULARY, PROMPT, BEAM = 4000, 16, 4

Prompts = list[list[int]]


def random_model(folder: Path, architecture: Transformer, length: int) -> Prompts:
    """Leaves a model of random weights in the folder, as an export would; returns prompts for it."""
    params = jax.device_get(jax.jit(architecture.build(VOCABULARY).init)(jax.random.key(0)))
    params["embedding"] = np.array(params["embedding"])
    params["embedding"][[PAD, START, EOS]] = 0.0
    with_encoder = architecture.family == "encoder_decoder"
    pad = START if with_encoder else PAD
    ids = {"pad_token_id": pad, "bos_token_id": START, "eos_token_id": EOS}
    ids |= {"decoder_start_token_id": START} if with_encoder else {}
    folder.mkdir()
    write_model(folder, dataclasses.replace(architecture, dropout=0.0), params, ids, VOCABULARY)
    manifest.write_json(folder / "generation_config.json", ids | {"max_new_tokens": length})
    words = tokenizers.models.WordLevel({f"<{i}>": i for i in range(VOCABULARY)}, unk_token=f"<{UNKNOWN}>")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    special = {"pad_token": pad, "bos_token": START, "eos_token": EOS, "unk_token": UNKNOWN}
    special = {name: f"<{i}>" for name, i in special.items()}
    manifest.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    rng = np.random.default_rng(0)
    prompts = rng.integers(UNKNOWN + 1, VOCABULARY, (max(texts for _, texts in CASES.values()), PROMPT)).tolist()
    return prompts if with_encoder else [[START, *prompt] for prompt in prompts]


def exported_model(folder: Path, exported: Path, texts: Path) -> Prompts:
    """Copies an exported model to the folder, where converters may write; returns the prompts of a file of texts."""
    shutil.copytree(exported, folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(line).ids for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_job(folder: Path, family: str, weights: str, prompts: Prompts, threads: int) -> dict[str, Any]:
    """Leaves job.json, what is to be written with the model in `folder`, and returns it."""
    config, generation = (manifest.read_json(folder / f"{name}.json") for name in ("config", "generation_config"))
    job = {
        "family": family,
        "weights": weights,
        "threads": threads,
        "vocab_size": config["vocab_size"],
        "length": generation["max_new_tokens"],
        "pad": generation["pad_token_id"],
        "start": generation["bos_token_id"],
        "eos": generation["eos_token_id"],
        "cases": {},
    }
    for case, (size, count) in CASES.items():
        chosen = [prompts[i % len(prompts)] for i in range(count)]
        batches = [chosen[first : first + size] for first in range(0, count, size)]
        job["cases"][case] = {"beam": BEAM if case.startswith("beam") else 1, "batches": batches}
    manifest.write_json(folder / "job.json", job)
    return job


class Side:
    """A process that writes with one library."""

    def __init__(self, who: str, folder: Path, python: str):
        self.who, self.log = who, folder.parent / f"{who}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, writers.__file__, who, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.absent = self.answer()["absent"]

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(errors="replace").strip().split("\n")[-1]
            raise SystemExit(f"{self.who}: ended with {self.process.wait()}: {last}")
        return json.loads(line)

    def ask(self, case: str) -> dict[str, Any]:
        self.process.stdin.write(f"{case}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def start_sides(job: dict[str, Any], folder: Path, others: str, who: Sequence[str]) -> dict[str, Side]:
    """Those libraries that are there and know the family; kd_jax is the first."""
    sides = {}
    for name in who:
        if job["family"] not in writers.SIDES[name].families:
            continue
        side = Side(name, folder, sys.executable if name == "kd_jax" else others)
        if side.absent:
            print(f"{job['family']}: without {name}: {side.absent}")
        else:
            sides[name] = side
    return sides


def measure(job: dict[str, Any], sides: dict[str, Side], case: str, rounds: int) -> list[dict[str, Any]]:
    """One row for every library."""
    able = [name for name in sides if writers.SIDES[name].beams or job["cases"][case]["beam"] == 1]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in able}
    for _ in range(rounds + 1):  # the first is to compile and to warm up
        for name in able:
            turns[name].append(sides[name].ask(case))
    rows = []
    for name, answers in turns.items():
        texts, ours = answers[0]["texts"], turns["kd_jax"][0]["texts"]
        speed, cpu_speed = (
            sum(map(len, texts)) / statistics.median(answer[clock] for answer in answers[1:])
            for clock in ("seconds", "cpu_seconds")
        )
        row = {"family": job["family"], "who": name, "case": case, "tokens_per_second": speed}
        row["tokens_per_cpu_second"] = cpu_speed
        row["same_texts"] = sum(theirs == our for theirs, our in zip(texts, ours, strict=True)) / len(ours)
        row["ours_over_theirs"] = (rows or [row])[0]["tokens_per_second"] / speed
        rows.append(row | {key: job[key] for key in ("weights", "threads")})
    return rows


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    speeds = f"{row['tokens_per_second']:8,.0f} tokens/s, {row['tokens_per_cpu_second']:8,.0f} a CPU second"
    ratio = f"kd_jax / it {row['ours_over_theirs']:5.2f}"
    print(f"{row['family']:15s} {row['case']:9s} {row['who']:16s} {speeds}; {ratio}; same {row['same_texts']:4.0%}")


def main() -> None:
    """Prints the table; writes the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=24, help="tokens of a text from random weights")
    for family in CONFIGS:
        option = f"--{family.replace('_', '-')}"
        parser.add_argument(option, type=Path, nargs=2, metavar=("FOLDER", "PROMPTS"), help="a trained model")
    parser.add_argument("--others", default=sys.executable, help="interpreter with torch, transformers, ctranslate2")
    parser.add_argument("--who", nargs="+", default=list(writers.SIDES), choices=list(writers.SIDES))
    parser.add_argument("--threads", type=int, default=2, help="cores, and threads of every library")
    arguments = parser.parse_args()
    who, rows = dict.fromkeys(["kd_jax", *arguments.who]), []
    for family, given in zip(CONFIGS, (arguments.encoder_decoder, arguments.decoder_only), strict=True):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            if given:
                prompts = exported_model(folder, *given)
            else:
                shape = load_experiment(ROOT / f"experiments/configs/{CONFIGS[family]}.py").teacher.model
                prompts = random_model(folder, shape, arguments.length)
            weights = str(given[0]) if given else "random"
            job = write_job(folder, family, weights, prompts, arguments.threads)
            sides = start_sides(job, folder, arguments.others, list(who))
            for case in CASES:
                of_case = measure(job, sides, case, arguments.rounds)
                for row in of_case:
                    show(row)
                rows += of_case
            for side in sides.values():
                side.close()
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
