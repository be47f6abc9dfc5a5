"""Questions about Debian's package index, answered by the models of debian_lm.

    python -m kd_jax run experiments/configs/instructions.py --workdir runs/instructions
    echo "In which section of Debian is the package gimp?" | python -m kd_jax generate --workdir runs/instructions

For your own data set source=Files(train=("mine.jsonl",)), with {"prompt": "...", "response": "..."} on each line.
"""

import dataclasses

from kd_jax import Debian, Decoding, Evaluation, Instructions, load_experiment

lm = load_experiment(__file__.replace("instructions", "debian_lm"))


def with_steps(recipe, steps):
    """Return the recipe with other steps."""
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
    teacher=with_steps(lm.teacher, 2000),
    students={name: with_steps(recipe, 800) for name, recipe in lm.students.items()},
    evaluation=Evaluation(texts=1000),
)
