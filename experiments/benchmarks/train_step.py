"""Compare a teacher's training step with PyTorch (transformers) at the same shape, batch and precision.

    pip install torch==2.13.0 transformers
    python experiments/benchmarks/train_step.py --json train_step.json

encoder_decoder: the quickstart's teacher against Marian, whose post-norm layers with biases are a little more work.
decoder_only: debian_lm's teacher, without dropout, against Llama, which has no dropout. PyTorch's figure is that of the
faster attention, eager or scaled_dot_product_attention.

Both sides use float32, all cores, the same random token ids, label smoothing as configured, clipping at norm 1, and
AdamW (the fused one in PyTorch). Each side runs in its own process, with the settings that its users get. Blocks of
steps take turns; figures are medians.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
import unittest.mock
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from kd_jax import (
    Batch,
    DecoderOnly,
    EncoderDecoder,
    ResolvedExperiment,
    init_state,
    load_experiment,
    resolve,
    train_step,
)
from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.cli.memory import with_large_pages
from kd_jax.runtime.backends import make_devices
from kd_jax.tasks.base import Encoded
from kd_jax.tokenizers.sentencepiece import START

CONFIGS = Path(__file__).parents[1] / "configs"
BLOCK = 5
Step = Callable[[], None]


def make_setting(family: str) -> tuple[ResolvedExperiment, Batch]:
    """Return the experiment of the measured teacher, and a batch for it."""
    if family == "encoder_decoder":
        experiment, bucket = resolve(load_experiment(CONFIGS / "quickstart_references.py")), Bucket(16, 16)
        return experiment, random_batch(experiment, experiment.teacher.training.tokens_per_batch // 16, bucket)
    experiment = resolve(load_experiment(CONFIGS / "debian_lm.py"))
    model = dataclasses.replace(cast(DecoderOnly, experiment.teacher.model), dropout=0.0)
    experiment = dataclasses.replace(experiment, teacher=dataclasses.replace(experiment.teacher, model=model))
    return experiment, random_batch(experiment, 8, Bucket(0, 256))


def random_batch(experiment: ResolvedExperiment, count: int, bucket: Bucket) -> Batch:
    """Return `count` full rows of random ids; all targets count."""
    ids = np.random.default_rng(0).integers(4, experiment.tokenizer.vocab_size, (count, sum(bucket))).astype(np.int32)
    counts = np.ones(sum(bucket), bool)
    examples = [Encoded(row[: bucket.prompt], row[bucket.prompt :], counts) for row in ids]
    rows = [[Segment(i, encoded, 1.0, {})] for i, encoded in enumerate(examples)]
    return experiment.teacher.model.layout(START).batch(rows, count, bucket, {})


def jax_step(experiment: ResolvedExperiment, batch: Batch) -> Step:
    """Return a function that makes one update with kd_jax and waits for its end."""
    recipe, devices = experiment.teacher, make_devices("jit")
    model = recipe.model.build(experiment.tokenizer.vocab_size)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    step = devices.compile_sums(functools.partial(train_step, model=model, terms=recipe.terms, tx=tx), donate=True)
    state = devices.replicate(init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx))
    on_device = devices.shard(batch)

    def run() -> None:
        nonlocal state
        state, sums = step(state, on_device)
        jax.block_until_ready(sums)

    return run


def marian(experiment: ResolvedExperiment) -> Any:
    """Return a Marian of transformers in the teacher's shape."""
    from transformers import MarianConfig, MarianMTModel

    shape = cast(EncoderDecoder, experiment.teacher.model)
    config = MarianConfig(
        vocab_size=experiment.tokenizer.vocab_size,
        d_model=shape.d_model,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.d_ff,
        decoder_ffn_dim=shape.d_ff,
        activation_function="relu",
        dropout=shape.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        scale_embedding=True,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    return MarianMTModel(config)


def llama(experiment: ResolvedExperiment, attention: str) -> Any:
    """Return a Llama of transformers in the teacher's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = cast(DecoderOnly, experiment.teacher.model)
    config = LlamaConfig(
        vocab_size=experiment.tokenizer.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=shape.tied,
        rms_norm_eps=shape.norm_epsilon,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


MODELS = {
    "encoder_decoder": {"eager": marian},
    "decoder_only": {name: functools.partial(llama, attention=name) for name in ("sdpa", "eager")},
}


def torch_step(experiment: ResolvedExperiment, batch: Batch, build: Callable[[ResolvedExperiment], Any]) -> Step:
    """Return a function that makes one update with a model of transformers and waits for its end."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    model, optimizer = build(experiment).train(), experiment.teacher.training.optimizer
    adamw = torch.optim.AdamW(
        model.parameters(), optimizer.learning_rate, (optimizer.beta1, optimizer.beta2), weight_decay=0.0, fused=True
    )
    to_torch = lambda ids_BT: torch.from_numpy(ids_BT.astype(np.int64))  # noqa: E731
    decoder, targets = to_torch(batch.inputs.decoder.ids_BT), to_torch(batch.targets_BT)
    inputs = {"input_ids": decoder}
    if batch.inputs.encoder is not None:
        source = to_torch(batch.inputs.encoder.ids_BT)
        inputs = {"input_ids": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": decoder}
    smoothing = experiment.teacher.terms["ce"].options.get("label_smoothing", 0.0)
    cross_entropy = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)

    def run() -> None:
        loss = cross_entropy(model(**inputs, use_cache=False).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        loss.item()

    return run


def serve(pipe: Connection, family: str, side: str) -> None:
    """Run a block of steps at each message, and answer with the seconds of each step."""
    experiment, batch = make_setting(family)
    step = jax_step(experiment, batch) if side == "kd_jax" else torch_step(experiment, batch, MODELS[family][side])
    for _ in range(3):
        step()
    pipe.send(batch.targets_BT.size)
    while pipe.recv():
        seconds = []
        for _ in range(BLOCK):
            start_time = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start_time)
        pipe.send(seconds)


def measure(family: str, blocks: int) -> list[dict[str, Any]]:
    """Return a row for kd_jax, and one for the faster of PyTorch's models."""
    spawn = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {}
    tokens = 0
    for side in ("kd_jax", *MODELS[family]):
        pipes[side], child_pipe = spawn.Pipe()
        with unittest.mock.patch.dict(os.environ, with_large_pages(os.environ) if side == "kd_jax" else {}):
            spawn.Process(target=serve, args=(child_pipe, family, side), daemon=True).start()
        tokens, seconds[side] = pipes[side].recv(), []
    for _ in range(blocks):
        for side, pipe in pipes.items():
            pipe.send(True)
            seconds[side] += pipe.recv()
    for pipe in pipes.values():
        pipe.send(False)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    medians = {"kd_jax": medians["kd_jax"], "torch": min(medians[side] for side in MODELS[family])}
    return [
        {"family": family, "who": side, "tokens_per_second": tokens / median, "seconds": median}
        for side, median in medians.items()
    ]


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--blocks", type=int, default=12, help=f"blocks of {BLOCK} steps for each side")
    parser.add_argument("--families", nargs="+", default=["encoder_decoder", "decoder_only"])
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        sys.exit("error: expected torch and transformers. Run `pip install torch==2.13.0 transformers`.")
    rows, ratios = [], {}
    for family in arguments.families:
        ours, theirs = measure(family, arguments.blocks)
        rows += [ours, theirs]
        ratios[family] = ours["tokens_per_second"] / theirs["tokens_per_second"]
        for row in (ours, theirs):
            rate = row["tokens_per_second"]
            print(f"{family:15s} {row['who']:6s} {1e3 * row['seconds']:7.1f} ms/step {rate:8.0f} tokens/s")
        print(f"{family:15s} kd_jax is {ratios[family]:.2f} x PyTorch")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
