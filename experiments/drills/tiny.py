"""The smoke experiment with 120 examples and 20 steps, for drills: a minute. The figures mean nothing.

python -m kd_jax run experiments/drills/tiny.py --workdir runs/drill
"""

import dataclasses
from pathlib import Path

from kd_jax import Optimizer, Recipe, SentencePiece, Toy, load_experiment

SMOKE = load_experiment(Path(__file__).resolve().parents[1] / "configs/smoke.py")


def shorten(recipe: Recipe) -> Recipe:
    """Return the recipe with 20 training steps."""
    optimizer = Optimizer(learning_rate=5e-3, warmup=5)
    training = dataclasses.replace(recipe.training, steps=20, eval_every=10, optimizer=optimizer)
    return dataclasses.replace(recipe, training=training)


experiment = dataclasses.replace(
    SMOKE,
    name="drill",
    source=Toy(examples=120),
    tokenizer=SentencePiece(vocab_size=60),
    backend="jit",
    teacher=shorten(SMOKE.teacher),
    students={name: shorten(SMOKE.students[name]) for name in ("student_scratch", "student_kd")},
    evaluation=dataclasses.replace(SMOKE.evaluation, bootstrap=50, speed_texts=4),
)
