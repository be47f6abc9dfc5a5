"""What follows a prompt: `python generate.py 5 17 9` (token ids; the tokeniser makes them). JAX and NumPy alone."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import export


def generate(folder, prompts):
    """Token ids that each prompt, a list of token ids, is followed by, without the end."""
    said = json.loads((folder / "settings.json").read_text())
    prefill, step = (export.deserialize((folder / f"{name}.bin").read_bytes()) for name in ("prefill", "step"))
    stored = np.load(folder / "params.npz").values()  # in which bfloat16 is two bytes of no type
    params = jax.device_put(tuple(x.view(aval.dtype) for x, aval in zip(stored, prefill.in_avals, strict=False)))
    longest = max(map(len, prompts))
    if longest > said["width"]:
        raise ValueError(f"a prompt of {longest} tokens; wanted at most {said['width']}")
    ids = np.zeros((len(prompts), said["width"]), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    token, cache = jax.jit(prefill.call)(params, ids, np.array([len(prompt) for prompt in prompts], np.int32))
    follow, written = jax.jit(step.call), []
    for _ in range(said["room"]):
        token, _, cache = follow(params, cache, token)
        written.append(np.asarray(token))
        if (np.stack(written) == said["eos"]).any(0).all():
            break
    texts = np.stack(written, 1).tolist()
    return [text[: text.index(said["eos"])] if said["eos"] in text else text for text in texts]


if __name__ == "__main__":
    print(*generate(Path(__file__).parent, [[int(word) for word in sys.argv[1:]]])[0])
