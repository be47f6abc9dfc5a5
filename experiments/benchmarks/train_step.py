"""A teacher's step of each family against a PyTorch model (of transformers) of the same shape, batch and precision.

    pip install torch==2.13.0 transformers
    python experiments/benchmarks/train_step.py --json train_step.json

encoder_decoder: the quickstart's teacher against Marian, which is post-norm with biases: a little more work.
decoder_only: debian_lm's teacher against Llama, without dropout, which Llama lacks; its attention is PyTorch's faster
one, eager or scaled_dot_product_attention.

Both sides: float32, all cores, the same random token ids, label smoothing as configured, clipping at norm 1, AdamW
(PyTorch's fused one). Each side in a process of its own, which works as it does for its users; blocks of steps in turn;
medians.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from kd_jax import Batch, Experiment, init_state, load_experiment, train_step
from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.cli.memory import with_large_pages
from kd_jax.runtime.backends import make_devices
from kd_jax.tasks.base import Encoded
from kd_jax.tokenizers.sentencepiece import START

CONFIGS = Path(__file__).parents[1] / "configs"
BLOCK = 5
Step = Callable[[], None]


def setting(family: str) -> tuple[Experiment, Batch]:
    """The experiment whose teacher is timed, and a batch for it."""
    if family == "encoder_decoder":
        experiment, bucket = load_experiment(CONFIGS / "quickstart.py"), Bucket(16, 16)
        return experiment, random_batch(experiment, experiment.teacher.training.tokens_per_batch // 16, bucket)
    experiment = load_experiment(CONFIGS / "debian_lm.py")
    model = dataclasses.replace(experiment.teacher.model, dropout=0.0)
    experiment = dataclasses.replace(experiment, teacher=dataclasses.replace(experiment.teacher, model=model))
    return experiment, random_batch(experiment, 8, Bucket(0, 256))


def random_batch(experiment: Experiment, count: int, bucket: Bucket) -> Batch:
    """`count` rows of random ids, every one full; all targets count."""
    ids = np.random.default_rng(0).integers(4, experiment.tokenizer.vocab_size, (count, sum(bucket))).astype(np.int32)
    counts = np.ones(sum(bucket), bool)
    examples = [Encoded(row[: bucket.prompt], row[bucket.prompt :], counts) for row in ids]
    rows = [[Segment(i, encoded, 1.0, {})] for i, encoded in enumerate(examples)]
    return experiment.teacher.model.layout(START).batch(rows, count, bucket, {})


def jax_step(experiment: Experiment, batch: Batch) -> Step:
    """() -> one update, finished."""
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


def marian(experiment: Experiment) -> Any:
    """transformers' Marian in the teacher's shape."""
    from transformers import MarianConfig, MarianMTModel

    shape = experiment.teacher.model
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


def llama(experiment: Experiment, attention: str) -> Any:
    """transformers' Llama in the teacher's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = experiment.teacher.model
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


def torch_step(experiment: Experiment, batch: Batch, build: Callable[[Experiment], Any]) -> Step:
    """The same with a model of transformers."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    model, optimizer = build(experiment).train(), experiment.teacher.training.optimizer
    adamw = torch.optim.AdamW(
        model.parameters(), optimizer.learning_rate, (optimizer.beta1, optimizer.beta2), weight_decay=0.0, fused=True
    )
    as_torch = lambda ids_BT: torch.from_numpy(ids_BT.astype(np.int64))  # noqa: E731
    decoder, targets = as_torch(batch.inputs.decoder.ids_BT), as_torch(batch.targets_BT)
    given = {"input_ids": decoder}
    if batch.inputs.encoder is not None:
        source = as_torch(batch.inputs.encoder.ids_BT)
        given = {"input_ids": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": decoder}
    options = experiment.teacher.terms["ce"].options
    smoothing = options["label_smoothing"] if "label_smoothing" in options else 0.0
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)

    def run() -> None:
        loss = loss_of(model(**given, use_cache=False).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        loss.item()

    return run


def serve(pipe: Connection, family: str, who: str) -> None:
    """A process of its own for one side: at every message a block of steps, answered by their seconds."""
    experiment, batch = setting(family)
    step = jax_step(experiment, batch) if who == "kd_jax" else torch_step(experiment, batch, MODELS[family][who])
    for _ in range(3):
        step()
    pipe.send(batch.targets_BT.size)
    while pipe.recv():
        seconds = []
        for _ in range(BLOCK):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        pipe.send(seconds)


def measure(family: str, blocks: int) -> list[dict[str, Any]]:
    """A row for each side; of PyTorch's models the faster one."""
    spawn = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {}
    for who in ("kd_jax", *MODELS[family]):
        pipes[who], theirs = spawn.Pipe()
        with unittest.mock.patch.dict(os.environ, with_large_pages(os.environ) if who == "kd_jax" else {}):
            spawn.Process(target=serve, args=(theirs, family, who), daemon=True).start()
        tokens, seconds[who] = pipes[who].recv(), []
    for _ in range(blocks):
        for who, pipe in pipes.items():
            pipe.send(True)
            seconds[who] += pipe.recv()
    for pipe in pipes.values():
        pipe.send(False)
    medians = {who: statistics.median(times) for who, times in seconds.items()}
    medians = {"kd_jax": medians["kd_jax"], "torch": min(medians[who] for who in MODELS[family])}
    return [
        {"family": family, "who": who, "tokens_per_second": tokens / median, "seconds": median}
        for who, median in medians.items()
    ]


def main() -> None:
    """Prints the table; writes it to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--blocks", type=int, default=12, help=f"of {BLOCK} steps of each, in turn")
    parser.add_argument("--families", nargs="+", default=["encoder_decoder", "decoder_only"])
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        sys.exit("error: torch or transformers is missing; pip install torch==2.13.0 transformers")
    rows, ratios = [], {}
    for family in arguments.families:
        ours, theirs = measure(family, arguments.blocks)
        rows += [ours, theirs]
        ratios[family] = ours["tokens_per_second"] / theirs["tokens_per_second"]
        for row in (ours, theirs):
            rate = row["tokens_per_second"]
            print(f"{family:15s} {row['who']:6s} {1e3 * row['seconds']:7.1f} ms a step {rate:8.0f} tokens a second")
        print(f"{family:15s} tokens a second, kd_jax over PyTorch: {ratios[family]:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
