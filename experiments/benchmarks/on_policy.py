"""Measure an on-policy update: the student writes its texts, and the teacher judges them in the step.

    python experiments/benchmarks/on_policy.py --json on_policy.json

Cases: cross-entropy alone; the teacher in the step on given texts; on-policy with share 1 and share 0.5. An on-policy
update includes its part of the pool: writing, judging and keeping the texts. Text is random, with the shapes of
student_step.py: quickstart (prompts and texts of 16 tokens) and debian_lm (a beginning of 32 tokens and 32 of the
student's own, packed). Parameters are random too, so no text ends early: this is the dearest case. The cases take turns
in pools of 50 batches; figures are medians.

With --trl, kd_jax and TRL's DistillationTrainer make updates in turn: the same Llamas, prompts, lengths and rows (one
text a row), forward KL, float32, all cores. --trl names a Python that has torch, transformers, trl and accelerate.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax

from experiments.benchmarks.student_step import Shape, shapes, write
from kd_jax import (
    DecoderOnly,
    Online,
    OnPolicy,
    Term,
    cross_entropy,
    forward_kl,
    init_state,
    load_experiment,
    resolve,
    train_step,
)
from kd_jax.artifacts.manifest import Folder
from kd_jax.batches import pipeline
from kd_jax.batches.layouts import Bucket
from kd_jax.batches.on_policy import OnPolicyBatches, PooledExamples
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.runtime import progress
from kd_jax.runtime.backends import make_devices
from kd_jax.teaching.own_texts import OwnTextWriter
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.tokenizers.sentencepiece import START
from kd_jax.training.on_policy import LivePool

ROOT = Path(__file__).parents[2]
CONFIGS = {"quickstart": "quickstart_references.py", "debian_lm": "debian_lm.py"}
KD = {"kd": Term(forward_kl, signal=Online())}
SHARES = {"ce": None, "online": None, "share 0.5": 0.5, "share 1": 1.0}
POOL = 50
TRL_ROWS, TRL_PROMPT, TRL_TEXT, TRL_BLOCK = 16, 32, 32, 10  # rows, tokens and updates beside TRL
EOS = 2


def stand_in_tokenizer(vocab_size: int) -> Tokenizer:
    """Return what training asks of a tokenizer; random ids are no text."""
    settings = {"vocab_size": vocab_size, "start": START, "eos": EOS, "ends": (EOS,), "forced_prefix": ()}
    settings |= {"suppress_tokens": (), "suppress_first": (), "force_end": False}
    return cast(Tokenizer, types.SimpleNamespace(**settings, decode=lambda ids: " ".join(map(str, ids))))


def set_up(name: str, shape: Shape) -> tuple[ResolvedExperiment, OnPolicy]:
    """Return the experiment with the lengths of a shape, and its rule of own texts."""
    experiment = resolve(load_experiment(ROOT / "experiments/configs" / CONFIGS[name]))
    beginning = shape.lengths.completion // 2
    length = shape.lengths.completion if experiment.task.prompted else beginning
    buckets, prompts = (shape.bucket.completion,), (shape.bucket.prompt or beginning,)
    experiment = dataclasses.replace(experiment, buckets=buckets, prompt_buckets=prompts)
    return experiment, OnPolicy(share=1.0, pool=POOL, length=length, beginning=beginning)


def make_case(name: str, shape: Shape, folder: Folder, case: str) -> Callable[[], dict[str, float]]:
    """Return a function that makes the updates of a pool and returns their seconds."""
    experiment, rule = set_up(name, shape)
    recipe, devices, share = shape.student, make_devices("jit"), SHARES[case]
    rule = dataclasses.replace(rule, share=share or 0.0)
    split, layout = pipeline.Split(folder, "train"), recipe.model.layout(START)
    options = {"tokens_per_batch": recipe.training.tokens_per_batch, "packed": recipe.training.packed, "seed": 0}
    model, teacher = recipe.model.build(shape.vocab_size), shape.teacher.build(shape.vocab_size)
    batches: Any = iter(pipeline.TrainBatches(split, layout, [shape.bucket], divisor=1, **options).prefetch())
    pool = None
    if share:
        batches = OnPolicyBatches(
            pipeline.TrainPlan(split.lengths, layout, [shape.bucket], **options),
            PooledExamples(split),
            layout,
            rule,
            buckets=[shape.bucket],
            prompted=experiment.task.prompted,
            max_prompt=experiment.prompt_widths[-1],
            packed=recipe.training.packed,
            seed=0,
        )
        tokenizer = stand_in_tokenizer(shape.vocab_size)
        student = dataclasses.replace(experiment.teacher, model=recipe.model)
        writer = OwnTextWriter(experiment, student, rule, tokenizer)
        pool = LivePool(
            case,
            batches,
            writer,
            rule,
            student=model,
            teacher=teacher,
            tokenizer=tokenizer,
            devices=devices,
            last=shape.bucket,
            folder=folder.path / "own_texts" / case,
        )
    tx = recipe.training.optimizer.build(recipe.training.steps)
    terms = {"ce": Term(cross_entropy)} if case == "ce" else KD
    step = functools.partial(train_step, model=model, terms=terms, tx=tx, teacher=None if case == "ce" else teacher)
    compiled = devices.compile_sums(step, donate=True)
    state = devices.replicate(init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx))
    teacher_params = devices.replicate(jax.jit(teacher.init)(jax.random.key(2)))
    updates = 0

    def run() -> dict[str, float]:
        nonlocal state, updates
        start, row = time.perf_counter(), {}
        if pool:
            with progress.bar(case, POOL) as bar:
                row = pool.refill(updates + 1, state.params, teacher_params, bar) or {}
        done = 0
        while (not batches.is_empty) if pool else done < POOL:
            state, sums = compiled(state, devices.shard(next(batches)), None if case == "ce" else teacher_params)
            done += 1
        jax.block_until_ready(sums)
        updates += done
        seconds = (time.perf_counter() - start) / done
        return {
            "seconds": seconds,
            "sampling": row.get("sampling_seconds", 0.0) / done,
            "judging": row.get("judging_seconds", 0.0) / done,
            "tokens_per_second": row.get("own_tokens_per_second", 0.0),
        }

    return run


def measure(name: str, shape: Shape, pools: int) -> list[dict[str, Any]]:
    """Return a row for each case."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(Path(scratch), "benchmark")
        write(folder, shape)
        runs = {case: make_case(name, shape, folder, case) for case in SHARES}
        parts: dict[str, list[dict[str, float]]] = {case: [] for case in SHARES}
        for _ in range(pools + 1):  # the first one compiles
            for case, run in runs.items():
                parts[case].append(run())
    return [
        {"config": name, "case": case}
        | {key: statistics.median(part[key] for part in of_case[1:]) for key in of_case[0]}
        for case, of_case in parts.items()
    ]


def trl_shape() -> Shape:
    """Return the decoder-only shape of the comparison with TRL: one text in a row."""
    shape, length = shapes()["debian_lm"], TRL_PROMPT + TRL_TEXT
    training = dataclasses.replace(shape.student.training, packed=False, tokens_per_batch=TRL_ROWS * length)
    student = dataclasses.replace(shape.student, training=training)
    row = Bucket(0, length)
    return dataclasses.replace(shape, student=student, lengths=row, bucket=row)


def llama_shape(architecture: Architecture) -> dict[str, int]:
    """Return a decoder-only network's sizes by their names in transformers."""
    model = cast(DecoderOnly, architecture)
    return {
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_heads,
        "head_dim": model.head_width,
    }


def beside_trl(python: str, pools: int) -> dict[str, float]:
    """Return the seconds of an on-policy update of the same decoder-only models: kd_jax's and TRL's."""
    shape = trl_shape()
    seconds: dict[str, list[float]] = {"kd_jax": [], "trl": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(Path(scratch), "benchmark")
        write(folder, shape)
        split = pipeline.Split(folder, "train")
        job = {
            "vocab_size": shape.vocab_size,
            "start": START,
            "eos": EOS,
            "rows": TRL_ROWS,
            "text": TRL_TEXT,
            "block": TRL_BLOCK,
            "threads": os.cpu_count(),
            "prompts": [split.read(i).encoded.completion[:TRL_PROMPT].tolist() for i in range(len(split))],
            "student": llama_shape(shape.student.model),
            "teacher": llama_shape(shape.teacher),
        }
        (Path(scratch) / "job.json").write_text(json.dumps(job))
        command = [python, str(Path(__file__).parent / "sides/trl_distillation.py"), str(Path(scratch) / "job.json")]
        run = make_case("debian_lm", shape, folder, "share 1")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trl:
            assert trl.stdin and trl.stdout
            for _ in range(pools + 1):  # the first ones compile
                seconds["kd_jax"].append(run()["seconds"])
                trl.stdin.write("\n")
                trl.stdin.flush()
                line = trl.stdout.readline()
                if not line:
                    sys.exit(f"error: TRL's side ended with {trl.wait()}. It needs torch, transformers and trl.")
                seconds["trl"].append(statistics.median(json.loads(line)))
            trl.kill()
    return {side: statistics.median(times[1:]) for side, times in seconds.items()}


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--pools", type=int, default=5)
    parser.add_argument("--trl", nargs="?", const=sys.executable, help="compare with TRL, of this Python")
    arguments = parser.parse_args()
    rows = []
    for name in CONFIGS:
        of_shape = measure(name, shapes()[name], arguments.pools)
        rows += of_shape
        for row in of_shape:
            ratio = row["seconds"] / of_shape[0]["seconds"]
            print(
                f"{name:11s} {row['case']:10s} {1e3 * row['seconds']:8.1f} ms/update {ratio:5.2f} x ce, "
                f"sampling {row['sampling'] / row['seconds']:4.0%}, judging {row['judging'] / row['seconds']:4.0%}, "
                f"{row['tokens_per_second']:8.0f} own tokens/s",
                flush=True,
            )
    sides = beside_trl(arguments.trl, arguments.pools) if arguments.trl else {}
    if sides:
        ratio = sides["trl"] / sides["kd_jax"]
        ours, theirs = (1e3 * sides[side] for side in ("kd_jax", "trl"))
        print(f"kd_jax {ours:.0f} ms/update, TRL {theirs:.0f}: {ratio:.2f} times its updates a second")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "seconds beside TRL": sides}, indent=2) + "\n")


if __name__ == "__main__":
    main()
