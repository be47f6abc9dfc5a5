"""Measure generation speed with the same weights in kd_jax, transformers, CTranslate2 and llama.cpp.

    python experiments/benchmarks/decode.py --json decode.json

Both families; greedy at batch 1, 32 and 64, and beam 4 at batch 8. `--encoder-decoder` and `--decoder-only` each take a
folder from `kd_jax export` (or a supported folder in Hugging Face's layout) and a file with one prompt per line.
Without them, the models have the shapes of the teachers of quickstart and debian_lm, and random weights. Their prompts
have 16 tokens, and their texts have `--length` tokens: the embedding of the end token is zero, so its logit is never
the largest. The end token counts as a token, padding does not. Beam search ranks by the sum of log-probabilities,
because every library supports that score.

Each library runs in its own process on the same --threads cores. The processes take turns; figures are medians of
--rounds. --others is an interpreter with torch, transformers, ctranslate2, xllamacpp and gguf. The benchmark names
missing libraries and skips them. Load from other programs slows libraries whose threads wait for each other. On a busy
machine, use --threads 1 and compare tokens per second of processor time, which the table also shows.
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
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
import tokenizers
from sides import writers

from kd_jax import load_experiment, resolve
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
    """Write a model with random weights in the layout of an export, and return prompts for it."""
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
    """Copy an exported model to the folder, where converters write, and return the prompts of a file."""
    shutil.copytree(exported, folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(line).ids for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_job(folder: Path, family: str, weights: str, prompts: Prompts, threads: int) -> dict[str, Any]:
    """Write job.json, the prompts and settings for the model in `folder`, and return it."""
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
    """A process that generates texts with one library."""

    def __init__(self, library: str, folder: Path, python: str):
        """Start the process."""
        self.library, self.log = library, folder.parent / f"{library}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, writers.__file__, library, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.import_error: str = self.read_answer()["import_error"]

    def read_answer(self) -> dict[str, Any]:
        """Return the process's next answer."""
        line = self.stdout.readline()
        if not line:
            last = self.log.read_text(errors="replace").strip().split("\n")[-1]
            raise SystemExit(f"{self.library}: expected an answer, got exit status {self.process.wait()}: {last}")
        return json.loads(line)

    def ask(self, case: str) -> dict[str, Any]:
        """Run a case, and return its times and texts."""
        self.stdin.write(f"{case}\n")
        self.stdin.flush()
        return self.read_answer()

    def close(self) -> None:
        """End the process."""
        self.stdin.close()
        self.process.wait()


def start_sides(job: dict[str, Any], folder: Path, others: str, libraries: Sequence[str]) -> dict[str, Side]:
    """Start the installed libraries that support the family; kd_jax is the first."""
    sides = {}
    for name in libraries:
        if job["family"] not in writers.SIDES[name].families:
            continue
        side = Side(name, folder, sys.executable if name == "kd_jax" else others)
        if side.import_error:
            print(f"{job['family']}: skipped {name}: {side.import_error}")
        else:
            sides[name] = side
    return sides


def measure(job: dict[str, Any], sides: dict[str, Side], case: str, rounds: int) -> list[dict[str, Any]]:
    """Return one row for each library."""
    names = [name for name in sides if writers.SIDES[name].beams or job["cases"][case]["beam"] == 1]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds + 1):  # the first round compiles
        for name in names:
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
        row["same_texts"] = sum(text == our for text, our in zip(texts, ours, strict=True)) / len(ours)
        row["ours_over_theirs"] = (rows or [row])[0]["tokens_per_second"] / speed
        rows.append(row | {key: job[key] for key in ("weights", "threads")})
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one line of the table."""
    speeds = f"{row['tokens_per_second']:8,.0f} tokens/s, {row['tokens_per_cpu_second']:8,.0f} tokens/CPU s"
    ratio = f"kd_jax is {row['ours_over_theirs']:5.2f} x"
    print(
        f"{row['family']:15s} {row['case']:9s} {row['who']:16s} {speeds}; {ratio}; same texts {row['same_texts']:4.0%}"
    )


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=24, help="tokens per text of a model with random weights")
    for family in CONFIGS:
        option = f"--{family.replace('_', '-')}"
        parser.add_argument(option, type=Path, nargs=2, metavar=("FOLDER", "PROMPTS"), help="a trained model")
    parser.add_argument("--others", default=sys.executable, help="interpreter of the other libraries")
    parser.add_argument("--who", nargs="+", default=list(writers.SIDES), choices=list(writers.SIDES), help="libraries")
    parser.add_argument("--threads", type=int, default=2, help="cores and threads of each library")
    arguments = parser.parse_args()
    libraries, rows = list(dict.fromkeys(["kd_jax", *arguments.who])), []
    for family, trained in zip(CONFIGS, (arguments.encoder_decoder, arguments.decoder_only), strict=True):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            if trained:
                exported, texts = trained
                prompts = exported_model(folder, exported, texts)
            else:
                experiment = resolve(load_experiment(ROOT / f"experiments/configs/{CONFIGS[family]}.py"))
                prompts = random_model(folder, cast(Transformer, experiment.teacher.model), arguments.length)
            weights = str(trained[0]) if trained else "random"
            job = write_job(folder, family, weights, prompts, arguments.threads)
            sides = start_sides(job, folder, arguments.others, libraries)
            for case in CASES:
                case_rows = measure(job, sides, case, arguments.rounds)
                for row in case_rows:
                    show(row)
                rows += case_rows
            for side in sides.values():
                side.close()
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
