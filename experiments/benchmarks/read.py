"""Measure time and memory to read a model in Hugging Face's layout.

    python experiments/benchmarks/read.py --json read.json

A Llama in SmolLM2-135M's shape (30 layers, d 576, 49,152 tokens, tied) and a Marian in OPUS-MT's (6+6 layers, d 512,
58,101 tokens), with random parameters in float32, are written to a temporary folder. Then one process reads the bytes
of the files, and another reads the model. Time is the median of --rounds such pairs. Memory is the growth of the
process's largest resident set divided by the bytes of the parameters.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from kd_jax import DecoderOnly, EncoderDecoder
from kd_jax.models.huggingface.write import write_model
from kd_jax.models.transformer import Transformer

SMOLLM = DecoderOnly(layers=30, d_model=576, heads=9, kv_heads=3, d_ff=1536, dropout=0.0, context=8192)
OPUS = EncoderDecoder(6, 6, d_model=512, heads=8, d_ff=2048, dropout=0.0, norm_position="after", activation="silu")
MODELS = {"llama_135m": (SMOLLM, 49_152), "marian_75m": (OPUS, 58_101)}
READERS = {
    "bytes": "[path.read_bytes() for path in folder.glob('*.safetensors')]",
    "model": "kd_jax.models.huggingface.read.read_model(folder)",
}
PROCESS = """
import json, pathlib, re, sys, time
sys.path.insert(0, {root!r})
import kd_jax.models.huggingface.read
folder = pathlib.Path({folder!r})
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
peak_before, start_time = peak(), time.perf_counter()
result = {expression}
seconds = time.perf_counter() - start_time
print(json.dumps([seconds, 1024 * (peak() - peak_before)]))
"""


def save(folder: Path, model: Transformer, vocab_size: int) -> int:
    """Write a model with random parameters, and return their bytes."""
    shapes = jax.eval_shape(model.build(vocab_size).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    write_model(folder, model, params, {"pad_token_id": 0}, vocab_size)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def read(folder: Path, reader: str) -> tuple[float, int]:
    """Return (seconds, growth of the resident set in bytes) of a reader in its own process."""
    code = PROCESS.format(root=str(Path(__file__).parents[2]), folder=str(folder), expression=READERS[reader])
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, growth = json.loads(process.stdout)
    return seconds, growth


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes")
    arguments = parser.parse_args()
    rows = []
    for name, (model, vocab_size) in MODELS.items():
        with tempfile.TemporaryDirectory() as path:
            size = save(Path(path), model, vocab_size)
            pairs = [{reader: read(Path(path), reader) for reader in READERS} for _ in range(arguments.rounds)]
        seconds = {reader: statistics.median(pair[reader][0] for pair in pairs) for reader in READERS}
        memory = statistics.median(pair["model"][1] for pair in pairs) / size
        rows.append({"model": name, "bytes": size, "seconds": seconds, "memory_over_parameters": memory})
        ratio = seconds["model"] / seconds["bytes"]
        times = f"bytes {seconds['bytes']:.2f} s, model {seconds['model']:.2f} s ({ratio:.2f} x)"
        print(f"{name}: {size / 1e6:.0f} MB; {times}; memory {memory:.2f} x the parameters")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
