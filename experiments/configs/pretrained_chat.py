"""A pretrained chat model as teacher and a student with a third of its layers, on questions about Debian's packages.

    python -m kd_jax run experiments/configs/pretrained_chat.py --workdir runs/pretrained_chat --teacher.init.folder DIR

DIR is a local folder in Hugging Face's layout with a chat template, such as that of SmolLM2-135M-Instruct. Every prompt
is worded by it as one user's message, with the template's own system prompt. The students learn the answers of the
data, not those that the teacher would write: set `teacher_texts=True` below if the teacher knows the answers better.

For your own data set source=Files(train=("mine.jsonl",)), with {"prompt": "...", "response": "..."} or {"messages":
[...]} on each line. Length, memory and further options: see pretrained_lm.py. An instruction model has never seen
Debian's index; `--teacher.training.steps 500` trains it on the answers first.
"""

import dataclasses

from kd_jax import Debian, Decoding, Evaluation, HuggingFaceTokenizer, Instructions, load_experiment

lm = load_experiment(__file__.replace("pretrained_chat", "pretrained_lm"))


def unpacked(recipe):
    """Return the recipe without packing, since each answer has a prompt of its own."""
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, packed=False))


experiment = dataclasses.replace(
    lm,
    name="pretrained_chat",
    source=Debian("index", limit=lm.source.limit),
    task=Instructions(decoding=Decoding(beam=1, length_ratio=0.0, length=32)),
    tokenizer=HuggingFaceTokenizer(chat=True, cut=True),
    buckets=(16, 40),
    prompt_buckets=(64, 160),
    teacher=unpacked(lm.teacher),
    students={name: unpacked(recipe) for name, recipe in lm.students.items()},
    evaluation=Evaluation(texts=100, speed_texts=4, cached_k=64),
)
