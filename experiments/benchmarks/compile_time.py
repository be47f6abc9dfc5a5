"""Measure the seconds to compile a training step of 6 and 24 layers, in a loop and with scan_layers.

    python experiments/benchmarks/compile_time.py --json compile_time.json

Cross-entropy, AdamW and narrow networks of both families; the compiled operations do not depend on the widths. The step
is not run, and the cache of compiled programs is off. "trace" ends with StableHLO, "compile" is the work of XLA. Each
figure is the best of --repeats, in seconds of processor time on all cores; other load affects it less than wall time.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from kd_jax import DecoderOnly, EncoderDecoder, Optimizer, Term, cross_entropy, init_state, train_step
from kd_jax.batches.layouts import Bucket, Segment
from kd_jax.models.base import Architecture
from kd_jax.tasks.base import Encoded
from kd_jax.tokenizers.sentencepiece import START

VOCAB_SIZE, ROWS, BUCKET = 512, 8, Bucket(32, 32)
DEPTHS = (6, 24)


def architecture(family: str, layers: int, scan_layers: bool) -> Architecture:
    """Return a narrow architecture with this number of layers in each stack."""
    if family == "decoder_only":
        return DecoderOnly(layers, d_model=64, heads=4, d_ff=128, scan_layers=scan_layers)
    return EncoderDecoder(layers, layers, d_model=64, heads=4, d_ff=128, scan_layers=scan_layers)


def measure(model: Architecture) -> dict[str, float]:
    """Return the seconds to trace and to compile the architecture's training step."""
    network, tx = model.build(VOCAB_SIZE), Optimizer().build(1000)
    state = jax.eval_shape(lambda key: init_state(key, network.stack(network.init(key)), tx), jax.random.key(0))
    ids_T, counts_T = np.arange(sum(BUCKET), dtype=np.int32), np.ones(sum(BUCKET), bool)
    example = Encoded(ids_T[: BUCKET.prompt], ids_T[BUCKET.prompt :], counts_T)
    batch = model.layout(START).batch([[Segment(i, example, 1.0, {})] for i in range(ROWS)], ROWS, BUCKET, {})
    step = functools.partial(train_step, model=network, terms={"ce": Term(cross_entropy)}, tx=tx)
    start_time = time.process_time()
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    traced_time = time.process_time()
    lowered.compile()
    return {"trace": traced_time - start_time, "compile": time.process_time() - traced_time}


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    rows: list[dict[str, Any]] = []
    measure(architecture("decoder_only", 1, False))  # JAX initialises at the first compilation
    for family in ("encoder_decoder", "decoder_only"):
        for scan_layers in (False, True):
            for layers in DEPTHS:
                repeats = [measure(architecture(family, layers, scan_layers)) for _ in range(arguments.repeats)]
                best = min(repeats, key=lambda seconds: sum(seconds.values()))
                rows.append({"family": family, "scan_layers": scan_layers, "layers": layers, **best})
            few, many = (row["trace"] + row["compile"] for row in rows[-2:])
            mode = "scan" if scan_layers else "loop"
            for row in rows[-2:]:
                seconds = f"trace {row['trace']:5.1f} s, compile {row['compile']:5.1f} s"
                print(f"{family:15s} {mode} {row['layers']:2d} layers: {seconds}", flush=True)
            print(f"{family:15s} {mode} {DEPTHS[1]} layers: {many / few:.2f} x {DEPTHS[0]} layers", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
