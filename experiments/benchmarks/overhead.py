"""What a backend costs on one device: the quickstart teacher's step by each of them, against `jax.jit` by itself.

    python experiments/benchmarks/overhead.py --json overhead.json

"bare" is jax.jit of the same step with a donated state, fed by jax.device_put and read by jax.device_get. All ways take
turns in blocks of steps, in an order that is drawn anew each round; a step has its batch put and its loss read, as in
training. Medians of the blocks. Compiled in turn from one function, programs still lie in memory by chance: `bare` is
there twice, and what the second is beside the first is what chance makes.
"""

import argparse
import functools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
from train_step import setting

from kd_jax import Batch, Experiment, init_state, train_step
from kd_jax.runtime.backends import make_devices
from kd_jax.runtime.devices import Devices
from kd_jax.runtime.mesh import Mesh, MeshDevices
from kd_jax.runtime.pmap import PmapDevices
from kd_jax.training.step import state_axes

BLOCK = 10
Block = Callable[[], None]


def first_state(experiment: Experiment) -> tuple[Any, Any, Any]:
    """(the training step, its first state, the names of the state's axes)."""
    recipe = experiment.teacher
    model = recipe.model.build(experiment.tokenizer.vocab_size)
    tx = recipe.training.optimizer.build(recipe.training.steps)
    params = jax.jit(model.init)(jax.random.key(0))
    state = init_state(jax.random.key(1), params, tx)
    step = functools.partial(train_step, model=model, terms=recipe.terms, tx=tx)
    return step, state, state_axes(state, tx, model.axes(params))


def bare(experiment: Experiment, batch: Batch) -> Block:
    """Nothing of ours but the step."""
    step, state, _ = first_state(experiment)
    compiled = jax.jit(step, donate_argnums=0)

    def block() -> None:
        nonlocal state
        for _ in range(BLOCK):
            state, sums = compiled(state, jax.device_put(batch))
            jax.device_get(sums["loss"])

    return block


def through(devices: Devices, experiment: Experiment, batch: Batch) -> Block:
    """As `fit` does it."""
    step, state, axes = first_state(experiment)
    compiled, state = devices.compile_sums(step, donate=True), devices.replicate(state, axes)

    def block() -> None:
        nonlocal state
        for _ in range(BLOCK):
            state, sums = compiled(state, devices.shard(batch))
            jax.device_get(devices.unreplicate(sums)["loss"])

    return block


def main() -> None:
    """Prints a table; writes the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    experiment, batch = setting("encoder_decoder")
    backends = {"jit": make_devices("jit"), "pmap": PmapDevices(1), "mesh": MeshDevices(Mesh(1, 1, 1))}
    blocks = {"bare": bare(experiment, batch), "bare again": bare(experiment, batch)}
    blocks |= {name: through(devices, experiment, batch) for name, devices in backends.items()}
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for block in blocks.values():  # to compile
        block()
    for _ in range(arguments.rounds):
        for name in random.sample(list(blocks), len(blocks)):
            began = time.perf_counter()
            blocks[name]()
            seconds[name].append((time.perf_counter() - began) / BLOCK)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [{"way": name, "seconds": one, "over_bare": one / medians["bare"]} for name, one in medians.items()]
    for row in rows:
        print(f"{row['way']:10s} {1e3 * row['seconds']:6.1f} ms a step, {row['over_bare']:.3f} of bare")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
