"""Measure time and memory of every phase with pretrained teachers of real size, and check the plan.

    python experiments/benchmarks/pretrained.py --json pretrained.json

A Llama in SmolLM2-135M's shape (30 layers, d 576, 49,152 tokens, tied) and a Marian in OPUS-MT's (6+6 layers, d 512,
58,101 tokens) with random parameters replace the real models. They are in Hugging Face's layout, each with a tokenizer
of that size, trained on the text. experiments/configs/pretrained_lm.py and pretrained_seq2seq.py run with --examples
examples and --steps steps; the vocabulary is not cut. Each phase runs in its own process; the figures are its seconds
and its largest resident set. `plan` runs before the cache: its estimate for the top 32 is compared with the seconds of
the phase `cache`. Random models have no quality, so none is shown.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
import tokenizers
from read import MODELS as SHAPES
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from kd_jax import Experiment, load_experiment
from kd_jax.artifacts import manifest
from kd_jax.models.huggingface.write import write_model
from kd_jax.models.transformer import Transformer

ROOT = Path(__file__).parents[2]
MODELS = {"pretrained_lm": SHAPES["llama_135m"], "pretrained_seq2seq": SHAPES["marian_75m"]}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PHASES = ("prepare", "teacher", "plan", "cache", "student", "evaluate", "report")


def training_texts(experiment: Experiment) -> Iterator[str]:
    """Yield the texts of the training split."""
    task = experiment.task
    for example in experiment.source.splits(task.fields(), task.held_out_fields(), task.prompt_fields())["train"]:
        yield from (example[field] for field in task.text_fields())


def save(folder: Path, experiment: Experiment, model: Transformer, vocab_size: int) -> None:
    """Write a model with random parameters, and a byte-level tokenizer that is filled up to `vocab_size`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        training_texts(experiment),
        trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    tokenizer.add_tokens([f"<fill {i}>" for i in range(vocab_size - tokenizer.get_vocab_size())])
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if model.family == "encoder_decoder":
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
        special["decoder_start_token_id"] = 0
    shapes = jax.eval_shape(model.build(vocab_size).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes)
    write_model(folder, model, params, special, vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    manifest.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def options(teacher: Path, examples: int, steps: int) -> list[str]:
    """Return command-line options that shorten the experiment."""
    changes = {"teacher.init.folder": teacher, "tokenizer.cut": False, "source.limit": examples}
    for student in ("student_init", "student_kd"):
        training = f"students.{student}.training"
        changes |= {f"{training}.steps": steps, f"{training}.eval-every": steps}
        changes |= {f"{training}.optimizer.warmup": max(1, steps // 10)}
    changes |= {"evaluation.texts": 8, "evaluation.batch-size": 8, "evaluation.speed-texts": 2}
    return [part for key, value in changes.items() for part in (f"--{key}", str(value))]


class PhaseRun(NamedTuple):
    """Cost and output of one phase.

    Attributes:
      seconds: wall-clock time.
      memory: largest resident set, in bytes.
      output: standard output.
    """

    seconds: float
    memory: int
    output: str


def run(phase: str, name: str, workdir: Path, changes: list[str]) -> PhaseRun:
    """Run one phase in its own process."""
    config = ROOT / f"experiments/configs/{name}.py"
    command = [sys.executable, "-m", "kd_jax", phase, str(config), "--workdir", str(workdir), *changes]
    start_time = time.perf_counter()
    code = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);" + (
        "print('KIB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    process = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start_time
    if process.returncode:
        raise SystemExit(f"{name} {phase}: expected exit status 0, got {process.returncode}\n{process.stderr[-2000:]}")
    memory = re.findall(r"KIB (\d+)", process.stdout)[-1]
    return PhaseRun(seconds, 1024 * int(memory), process.stdout)


def measure(name: str, examples: int, steps: int, scratch: Path) -> dict[str, Any]:
    """Return the row of one configuration."""
    model, vocab_size = MODELS[name]
    experiment = load_experiment(ROOT / f"experiments/configs/{name}.py")
    teacher, workdir = scratch / "teacher", scratch / "run"
    teacher.mkdir()
    save(teacher, experiment, model, vocab_size)
    row: dict[str, Any] = {"config": name, "examples": examples, "steps": steps, "seconds": {}, "memory": {}}
    changes = options(teacher, examples, steps)
    for phase in PHASES:
        phase_run = run(phase, name, workdir, changes)
        row["seconds"][phase], row["memory"][phase] = phase_run.seconds, phase_run.memory
        print(f"{name}: {phase} {phase_run.seconds:.0f} s, {phase_run.memory / 2**30:.1f} GiB", flush=True)
        if phase == "plan":
            hours = re.findall(r"top 32 .*MiB\s+([\d.]+)", phase_run.output)[0]
            row["planned_cache_seconds"] = 3600 * float(hours)
    cache = manifest.read_json(workdir / "cache/topk/manifest.json")
    row |= {"cache_seconds": cache["seconds"], "cache_bytes": cache["outputs"]["bytes"]}
    row |= {"target_tokens": cache["outputs"]["target_tokens"]}
    print(
        f"{name}: cache {row['cache_seconds']:.0f} s, planned {row['planned_cache_seconds']:.0f} s; "
        f"{row['target_tokens']:,} target tokens, {row['cache_bytes'] / 2**20:.1f} MiB",
        flush=True,
    )
    return row


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--examples", type=int, default=100, help="of each split")
    parser.add_argument("--steps", type=int, default=20, help="of each student")
    parser.add_argument("--config", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.config:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measure(name, arguments.examples, arguments.steps, Path(scratch)))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
