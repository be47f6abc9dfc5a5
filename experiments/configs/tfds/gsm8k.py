"""GSM8K: word problems with worked answers; a decoder-only teacher and a student with half of its layers.

    python -m kd_jax run experiments/configs/tfds/gsm8k.py --workdir runs/gsm8k

Agarwal et al. 2024 (arXiv 2306.13649) distil on it. Models of this size, trained from random parameters, learn the form
of the answers but not arithmetic; use a trained teacher with `FromCheckpoint`.
"""

import dataclasses

from kd_jax import (
    Comparison,
    DecoderOnly,
    Decoding,
    Experiment,
    FromTeacher,
    Instructions,
    Optimizer,
    PseudoTargets,
    Recipe,
    SentencePiece,
    Term,
    Tfds,
    TopK,
    Training,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=DecoderOnly(layers=12, d_model=512, heads=8, kv_heads=2, d_ff=1408, dropout=0.1),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=5000,
        tokens_per_batch=8192,
        packed=True,
        eval_every=500,
        optimizer=Optimizer(learning_rate=5e-4, warmup=500, weight_decay=0.1),
    ),
)
ce_alone = dataclasses.replace(
    teacher,
    model=dataclasses.replace(teacher.model, layers=6),
    training=dataclasses.replace(teacher.training, steps=3000),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=64))}
start = dataclasses.replace(ce_alone, init=FromTeacher())

experiment = Experiment(
    name="gsm8k",
    source=Tfds("gsm8k", fields={"question": "question", "answer": "answer"}, held_out=0.05),
    task=Instructions(
        instruction="question",
        response="answer",
        decoding=Decoding(beam=1, length_ratio=0.0, length=256),
    ),
    tokenizer=SentencePiece(vocab_size=8000, model_type="bpe", byte_fallback=True),
    buckets=(128, 256),
    prompt_buckets=(128, 256),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": start,
        "student_kd": dataclasses.replace(start, terms=ce_and_kd),
        "student_pseudo": dataclasses.replace(start, targets=PseudoTargets("best", beam=4)),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd", controls=("student_init",)),
)
