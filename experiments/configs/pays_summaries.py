"""Distillation for summarization in several settings: debian_summaries on a part of its text.

    python -m kd_jax ablate experiments/configs/pays_summaries.py --workdir runs/pays_summaries --seeds 0 1 2

The students are those of pays_translation.py.
"""

import dataclasses

from extra.students import CONTROLS, by_setting

from kd_jax import Comparison, Debian, Decoding, EncoderDecoder, Evaluation, Summarization, load_experiment

summaries = load_experiment(__file__.replace("pays_summaries", "debian_summaries"))


def shorter(recipe, steps, **model):
    """Return the recipe with other steps, a smaller network, and all references."""
    training = dataclasses.replace(recipe.training, steps=steps, eval_every=250)
    model = dataclasses.replace(recipe.model, **model)
    return dataclasses.replace(recipe, model=model, training=training, targets=None, references=0)


width = {"d_model": 96, "heads": 4, "head_dim": 24, "d_ff": 384}
small = EncoderDecoder(encoder_layers=1, decoder_layers=1, d_model=48, heads=2, d_ff=192, dropout=0.0)
ce, kd = (shorter(summaries.students[name], 500, **width) for name in ("student_init", "student_kd"))
decoding = Decoding(beam=1, length_ratio=0.0, length=32)

experiment = dataclasses.replace(
    summaries,
    name="pays_summaries",
    source=Debian("summaries", limit=15_000),
    task=Summarization(document="description", summary="synopsis", document_tokens=127, decoding=decoding),
    buckets=(32, 40),
    prompt_buckets=(64, 128),
    teacher=shorter(summaries.teacher, 1500, **width),
    students=by_setting(ce, kd, small),
    comparison=Comparison("scratch_ce", "init_kd", controls=CONTROLS),
    evaluation=Evaluation(texts=600, speed_texts=4),
)
