"""Measure output layer, loss and both gradients: cross-entropy and distillation, fused and unfused.

    python experiments/benchmarks/fused_head.py --json fused_head.json

    plain_ce      hidden @ head, then optax's cross-entropy
    dense_kd      the same, and forward KL to the teacher's full distribution, from its logits
    topk_unfused  cross-entropy and forward KL on the top 64 and the rest, from an array [N, V]
    topk_fused    the same with kd_jax.fused_head

Each call computes the value and the gradients of hidden states and matrix, in float32, from random arrays. The cases
take turns; figures are medians. Temporary memory is the figure that XLA gives for the compiled program.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import optax

from kd_jax import (
    Head,
    StepInputs,
    Term,
    TokenInputs,
    TopK,
    cross_entropy,
    forward_kl,
    fused_head,
    total_loss,
)

SHAPES = ((2048, 512, 32_000), (512, 512, 128_256))
SIGNAL = TopK(k=64)
TERMS = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=SIGNAL)}


def plain_ce(hidden_ND: Any, kernel_DV: Any, tokens: TokenInputs, teacher_NV: Any) -> Any:
    """Return the cross-entropy of optax."""
    return optax.softmax_cross_entropy_with_integer_labels(hidden_ND @ kernel_DV, tokens.targets).sum()


def dense_kd(hidden_ND: Any, kernel_DV: Any, tokens: TokenInputs, teacher_NV: Any) -> Any:
    """Return cross-entropy and forward KL to the teacher's full distribution."""
    logits_NV = hidden_ND @ kernel_DV
    ce = optax.softmax_cross_entropy_with_integer_labels(logits_NV, tokens.targets).sum()
    kd = optax.kl_divergence(jax.nn.log_softmax(logits_NV), jax.nn.softmax(teacher_NV)).sum()
    return 0.5 * ce + 0.5 * kd


def topk_unfused(hidden_ND: Any, kernel_DV: Any, tokens: TokenInputs, teacher_NV: Any) -> Any:
    """Return the objective from an array of all logits."""
    return total_loss(TERMS, hidden_ND @ kernel_DV, tokens, StepInputs(jnp.int32(0)))[0]


def topk_fused(hidden_ND: Any, kernel_DV: Any, tokens: TokenInputs, teacher_NV: Any) -> Any:
    """Return the same objective from the fused head."""
    objective = functools.partial(total_loss, TERMS)
    return fused_head(objective, hidden_ND, Head(kernel_DV), tokens, StepInputs(jnp.int32(0)))[0]


CASES = {case.__name__: case for case in (plain_ce, dense_kd, topk_unfused, topk_fused)}


def measure(n: int, d: int, v: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row for each case, with N, D and V as given."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden_ND, kernel_DV = jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (d, v)) * d**-0.5
    teacher_NV = 4 * jax.random.normal(keys[2], (n, v))
    payload = {SIGNAL.name: jax.jit(SIGNAL.reduce)(teacher_NV)}
    tokens = TokenInputs(jax.random.randint(keys[3], (n,), 0, v), jnp.ones(n, bool), jnp.ones(n), payload)
    compiled = {
        name: jax.jit(jax.value_and_grad(case, (0, 1))).lower(hidden_ND, kernel_DV, tokens, teacher_NV).compile()
        for name, case in CASES.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(repeats + 1):  # the first repeat is a warm-up
        for name, step in compiled.items():
            start_time = time.perf_counter()
            jax.block_until_ready(step(hidden_ND, kernel_DV, tokens, teacher_NV))
            seconds[name].append(time.perf_counter() - start_time)
    rows = []
    for name in CASES:
        memory = compiled[name].memory_analysis()
        assert memory is not None
        row = {"case": name, "n": n, "d": d, "v": v, "seconds": statistics.median(seconds[name][1:])}
        rows.append(row | {"temp_bytes": memory.temp_size_in_bytes})
    return rows


def main() -> None:
    """Print a table for each shape, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    rows = []
    first_n, *widths = SHAPES[0]
    for n, d, v in (*SHAPES, (2 * first_n, *widths)):  # the last has twice the tokens of the first
        shape_rows = measure(n, d, v, arguments.repeats)
        plain = shape_rows[0]
        print(f"\nN = {n}, D = {d}, V = {v:,}")
        for row in shape_rows:
            print(
                f"  {row['case']:13s} {1e3 * row['seconds']:8.1f} ms {row['seconds'] / plain['seconds']:5.2f} x"
                f" {row['temp_bytes'] / 2**20:8.1f} MiB {row['temp_bytes'] / plain['temp_bytes']:5.2f} x"
            )
        rows += shape_rows
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
