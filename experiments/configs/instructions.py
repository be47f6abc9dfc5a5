"""Questions about Debian's package index, answered by debian_lm's models: what is it, which is it, where is it?

    python -m kd_jax run experiments/configs/instructions.py --workdir runs/instructions
    echo "In which section of Debian is the package gimp?" | python -m kd_jax generate --workdir runs/instructions

Your own prompts and responses: source=Files(train=("mine.jsonl",)), a {"prompt": "...", "response": "..."} a line.
"""

import dataclasses

from kd_jax import Debian, Decoding, Evaluation, Instructions, load_experiment

lm = load_experiment(__file__.replace("instructions", "debian_lm"))


def trained(recipe, steps):
    """debian_lm's recipe for other steps."""
    return dataclasses.replace(
        recipe, training=dataclasses.replace(recipe.training, steps=steps, eval_every=steps // 4)
    )


experiment = dataclasses.replace(
    lm,
    name="instructions",
    source=Debian("index"),
    task=Instructions(decoding=Decoding(beam=1, length_ratio=0.0, length=32)),
    buckets=(12, 32),
    prompt_buckets=(36, 96),
    teacher=trained(lm.teacher, 2000),
    students={name: trained(recipe, 800) for name, recipe in lm.students.items()},
    evaluation=Evaluation(texts=1000),
)
