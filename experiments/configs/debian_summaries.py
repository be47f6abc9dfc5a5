"""Summarization of Debian's package descriptions into their synopses: a teacher of 3+3 layers, students of 2+1.

python -m kd_jax run experiments/configs/debian_summaries.py --workdir runs/debian_summaries
"""

import dataclasses

from kd_jax import (
    Comparison,
    Debian,
    EncoderDecoder,
    Evaluation,
    Experiment,
    FromTeacher,
    Optimizer,
    Recipe,
    SentencePiece,
    Summarization,
    Term,
    TopK,
    Training,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=EncoderDecoder(encoder_layers=3, decoder_layers=3, d_model=160, heads=4, d_ff=640, dropout=0.1),
    terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})},
    training=Training(
        steps=2000, tokens_per_batch=640, packed=True, eval_every=500, optimizer=Optimizer(learning_rate=2e-3)
    ),
)
ce_alone = Recipe(
    model=dataclasses.replace(teacher.model, encoder_layers=2, decoder_layers=1, dropout=0.0),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=1000, tokens_per_batch=640, packed=True, eval_every=500, optimizer=Optimizer(learning_rate=2e-3)
    ),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}

experiment = Experiment(
    name="debian_summaries",
    source=Debian("summaries"),
    task=Summarization(document="description", summary="synopsis", document_tokens=255),
    tokenizer=SentencePiece(vocab_size=4000),
    buckets=(20, 32, 40),
    prompt_buckets=(64, 128, 256),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": dataclasses.replace(ce_alone, init=FromTeacher()),
        "student_kd": dataclasses.replace(ce_alone, init=FromTeacher(), terms=ce_and_kd),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd"),
    evaluation=Evaluation(texts=1000),
)
