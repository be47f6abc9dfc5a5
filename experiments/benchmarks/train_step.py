"""The quickstart's teacher step against a PyTorch (transformers' Marian) model of the same shape, batch and precision.

    pip install torch==2.13.0 transformers
    python experiments/benchmarks/train_step.py --json train_step.json

Both: float32, all cores, the same random token ids, dropout and label smoothing as configured, clipping at norm 1,
AdamW (PyTorch's fused one). Marian is post-norm with biases, the quickstart pre-norm RMSNorm without: a little less
work. The steps are timed in turn, in blocks, in one process; medians.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from kd_jax import Batch, Experiment, init_state, load, train_step
from kd_jax.data.layouts import Bucket, Row
from kd_jax.parallel import devices
from kd_jax.tasks.base import Encoded

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.py"
LENGTH, BLOCK = 16, 5


def random_batch(experiment: Experiment) -> Batch:
    """One batch of random ids, every sentence of LENGTH tokens."""
    count = experiment.teacher.training.tokens_per_batch // LENGTH
    ids = np.random.default_rng(0).integers(4, experiment.tokenizer.vocab_size, (count, 2, LENGTH)).astype(np.int32)
    rows = [Row(i, Encoded(*pair, np.ones(LENGTH, bool)), 1.0, {}) for i, pair in enumerate(ids)]
    return experiment.teacher.model.layout.batch(rows, count, Bucket(LENGTH, LENGTH), {})


def jax_step(experiment: Experiment, batch: Batch) -> Callable[[], None]:
    """() -> one update, finished."""
    recipe, spread = experiment.teacher, devices("jit")
    model = recipe.model.build(experiment.tokenizer.vocab_size)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    step = spread.compile_sums(functools.partial(train_step, model=model, terms=recipe.terms, tx=tx), donate=True)
    state = spread.put(init_state(jax.random.key(1), jax.jit(model.init)(jax.random.key(0)), tx))
    on_device = spread.cut(batch)

    def run() -> None:
        nonlocal state
        state, sums = step(state, on_device)
        jax.block_until_ready(sums)

    return run


def torch_step(experiment: Experiment, batch: Batch) -> Callable[[], None]:
    """The same with transformers' Marian."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        sys.exit("error: torch or transformers is missing; pip install torch==2.13.0 transformers")
    import torch
    from transformers import MarianConfig, MarianMTModel

    shape, optimizer = experiment.teacher.model, experiment.teacher.training.optimizer
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    model = MarianMTModel(
        MarianConfig(
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
    ).train()
    adamw = torch.optim.AdamW(
        model.parameters(), optimizer.learning_rate, (optimizer.beta1, optimizer.beta2), weight_decay=0.0, fused=True
    )
    ids = batch.inputs.encoder.ids_BT, batch.inputs.decoder.ids_BT, batch.targets_BT
    source, inputs, targets = (torch.from_numpy(ids_BT.astype(np.int64)) for ids_BT in ids)
    mask = torch.ones_like(source)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=experiment.teacher.terms["ce"].options["label_smoothing"])

    def run() -> None:
        logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits
        loss = loss_of(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        loss.item()

    return run


def main() -> None:
    """Prints the table; writes it to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--blocks", type=int, default=12, help=f"of {BLOCK} steps of each, in turn")
    arguments = parser.parse_args()
    experiment = load(CONFIG)
    batch = random_batch(experiment)
    cases = {"kd_jax": jax_step(experiment, batch), "torch_marian": torch_step(experiment, batch)}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for step in cases.values():
        for _ in range(3):
            step()
    for _ in range(arguments.blocks):
        for name, step in cases.items():
            for _ in range(BLOCK):
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        {"case": name, "seconds": median, "target_tokens_per_second": batch.targets_BT.size / median}
        for name, median in medians.items()
    ]
    ratio = medians["torch_marian"] / medians["kd_jax"]
    for row in rows:
        rate = row["target_tokens_per_second"]
        print(f"{row['case']:14s} {1e3 * row['seconds']:7.1f} ms a step {rate:8.0f} tokens a second")
    print(f"tokens a second, kd_jax over PyTorch: {ratio:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "ratio": ratio}, indent=2) + "\n")


if __name__ == "__main__":
    main()
