"""All phases of summarization on made-up lists, in one to six minutes, with decoder-only models and packed rows.

python -m kd_jax run experiments/configs/smoke_summaries.py --workdir runs/smoke_summaries
"""

import dataclasses

from kd_jax import DecoderOnly, Decoding, SentencePiece, Summarization, Toy, load_experiment

smoke = load_experiment(__file__.replace("smoke_summaries", "smoke"))


def decoder_only(recipe, layers):
    """Return the recipe for a decoder-only model with packed rows."""
    model = DecoderOnly(layers=layers, d_model=32, heads=2, d_ff=64, dropout=0.0)
    training = dataclasses.replace(recipe.training, packed=True)
    return dataclasses.replace(recipe, model=model, training=training)


experiment = dataclasses.replace(
    smoke,
    name="smoke_summaries",
    source=Toy(kind="summaries", examples=400),
    task=Summarization(decoding=Decoding(beam=2, length_ratio=0.0, length=16)),
    tokenizer=SentencePiece(vocab_size=45),
    buckets=(12, 24),
    prompt_buckets=(36, 72),
    teacher=decoder_only(smoke.teacher, layers=3),
    students={name: decoder_only(recipe, layers=1) for name, recipe in smoke.students.items()},
)
