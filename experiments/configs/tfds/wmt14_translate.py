"""WMT 2014 English-German: the Transformer of Vaswani et al. and three students with one decoder layer.

    python -m kd_jax run experiments/configs/tfds/wmt14_translate.py --workdir runs/wmt14_translate

Word-level and sequence-level distillation: Kim and Rush 2016 (arXiv 1606.07947). Shallow decoder: Kasai et al. 2020
(arXiv 2006.10369). `source.limit` keeps 2 of the 4.5 million pairs.
"""

import dataclasses

from kd_jax import (
    Comparison,
    EncoderDecoder,
    Experiment,
    FromTeacher,
    Optimizer,
    PseudoTargets,
    Recipe,
    SentencePiece,
    Term,
    Tfds,
    TopK,
    Training,
    Translation,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=EncoderDecoder(encoder_layers=6, decoder_layers=6, d_model=512, heads=8, d_ff=2048, dropout=0.1),
    terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})},
    training=Training(
        steps=100_000,
        tokens_per_batch=16_384,
        microbatches=2,
        eval_every=5000,
        optimizer=Optimizer(learning_rate=7e-4, warmup=4000, schedule="rsqrt"),
    ),
)
ce_alone = dataclasses.replace(
    teacher,
    model=dataclasses.replace(teacher.model, decoder_layers=1),
    training=dataclasses.replace(teacher.training, steps=50_000),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=64))}
start = dataclasses.replace(ce_alone, init=FromTeacher())

experiment = Experiment(
    name="wmt14_translate",
    source=Tfds("wmt14_translate/de-en", fields={"en": "en", "de": "de"}, limit=2_000_000),
    task=Translation(source="en", target="de"),
    tokenizer=SentencePiece(vocab_size=32_000),
    buckets=(24, 48, 96),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": start,
        "student_kd": dataclasses.replace(start, terms=ce_and_kd),
        "student_pseudo": dataclasses.replace(start, targets=PseudoTargets("best")),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd", controls=("student_init",)),
)
