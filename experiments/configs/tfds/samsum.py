"""SAMSum: summaries of chats, with the models and students of cnn_dailymail.py at half the width.

    python -m kd_jax run experiments/configs/tfds/samsum.py --workdir runs/samsum

It has 14,732 training examples. Its file must be downloaded by hand; an error message says from where and to which
folder.
"""

import dataclasses

from kd_jax import Decoding, SentencePiece, Summarization, Tfds, load_experiment

news = load_experiment(__file__.replace("samsum", "cnn_dailymail"))


def narrow(recipe, steps):
    """Return the recipe at half the width, with fewer steps and smaller batches."""
    training = dataclasses.replace(recipe.training, steps=steps, tokens_per_batch=2048, microbatches=1, eval_every=1000)
    model = dataclasses.replace(recipe.model, d_model=256, heads=4, d_ff=1024, dropout=0.2)
    return dataclasses.replace(recipe, model=model, training=training)


experiment = dataclasses.replace(
    news,
    name="samsum",
    source=Tfds("samsum", fields={"dialogue": "dialogue", "summary": "summary"}),
    task=Summarization(
        document="dialogue",
        summary="summary",
        document_tokens=500,
        decoding=Decoding(beam=4, length_ratio=0.0, length=64),
    ),
    tokenizer=SentencePiece(vocab_size=8000),
    buckets=(32, 64, 96),
    prompt_buckets=(128, 256, 512),
    teacher=narrow(news.teacher, steps=10_000),
    students={name: narrow(student, steps=5000) for name, student in news.students.items()},
)
