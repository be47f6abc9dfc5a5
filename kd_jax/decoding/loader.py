"""Generate a completion: `python generate.py 5 17 9`, the prompt's token ids. Needs only JAX and NumPy."""

import itertools
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export


def generate(folder, prompts):
    """Return the token ids of each prompt's completion, without the end token.

    Args:
      folder: the exported folder, a Path.
      prompts: lists of token ids.
    """
    settings = json.loads((folder / "settings.json").read_text())
    prefill, step = (export.deserialize((folder / f"{name}.bin").read_bytes()) for name in ("prefill", "step"))
    arrays = np.load(folder / "params.npz").values()  # NumPy reads bfloat16 as two bytes without a type
    params = jax.device_put(tuple(x.view(aval.dtype) for x, aval in zip(arrays, prefill.in_avals, strict=False)))
    start = settings.get("start")  # the programs begin with it themselves
    prompts = [prompt[1:] if prompt and prompt[0] == start else prompt for prompt in prompts]
    longest = max(map(len, prompts))
    if longest > settings["prompt_length"]:
        raise ValueError(f"prompts: expected at most {settings['prompt_length']} tokens, got {longest}.")
    ids = np.zeros((len(prompts), settings["prompt_length"]), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    token, cache = jax.jit(prefill.call)(params, ids, np.array([len(prompt) for prompt in prompts], np.int32))
    jitted_step, written = jax.jit(step.call), []
    for _ in range(settings["max_length"]):
        token, _, cache = jitted_step(params, cache, token)
        written.append(np.asarray(token))
        if np.isin(np.stack(written), settings["ends"]).any(0).all():
            break
    texts = np.stack(written, 1).tolist()
    return [list(itertools.takewhile(lambda token: token not in settings["ends"], text)) for text in texts]


if __name__ == "__main__":
    print(*generate(Path(__file__).parent, [[int(word) for word in sys.argv[1:]]])[0])
