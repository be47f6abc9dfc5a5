"""Translation between English and French or German in one model; a tag names the target language.

python -m kd_jax run experiments/configs/multiway.py --workdir runs/multiway
echo "<2de> library for reading and writing images" | python -m kd_jax generate --workdir runs/multiway
"""

import dataclasses

from kd_jax import Debian, Directions, Evaluation, SentencePiece, Translation, load_experiment

quickstart = load_experiment(__file__.replace("multiway", "quickstart_references"))


def with_steps(recipe, steps):
    """Return the recipe with other steps, which four directions share."""
    training = dataclasses.replace(recipe.training, steps=steps, eval_every=steps // 4)
    return dataclasses.replace(recipe, training=training)


experiment = dataclasses.replace(
    quickstart,
    name="multiway",
    source=Directions({pair: Debian(pair, kinds=("synopsis",)) for pair in ("en-fr", "en-de")}),
    task=Translation("source", "target", direction="direction", directions=("en-fr", "fr-en", "en-de", "de-en")),
    tokenizer=SentencePiece(vocab_size=6000),
    teacher=with_steps(quickstart.teacher, 4000),
    students={name: with_steps(recipe, 1400) for name, recipe in quickstart.students.items()},
    evaluation=Evaluation(texts=1600),
)
