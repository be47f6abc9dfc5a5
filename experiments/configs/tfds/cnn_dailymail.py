"""CNN/DailyMail: highlights of an article of up to 1,000 tokens; a student with a third of the decoder's layers.

    python -m kd_jax run experiments/configs/tfds/cnn_dailymail.py --workdir runs/cnn_dailymail

Shleifer and Rush 2020 (arXiv 2010.13002): for summaries, a student that starts from every n-th layer of the teacher and
is fine-tuned (`student_init`) is a strong baseline. The other students measure the gain by distillation.
"""

import dataclasses

from kd_jax import (
    Comparison,
    Decoding,
    EncoderDecoder,
    Evaluation,
    Experiment,
    FromTeacher,
    Optimizer,
    PseudoTargets,
    Recipe,
    SentencePiece,
    Summarization,
    Term,
    Tfds,
    TopK,
    Training,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=EncoderDecoder(encoder_layers=6, decoder_layers=6, d_model=512, heads=8, d_ff=2048, dropout=0.1),
    terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})},
    training=Training(
        steps=60_000,
        tokens_per_batch=4096,
        microbatches=4,
        eval_every=5000,
        optimizer=Optimizer(learning_rate=5e-4, warmup=4000, schedule="rsqrt"),
    ),
)
ce_alone = dataclasses.replace(
    teacher,
    model=dataclasses.replace(teacher.model, decoder_layers=2),
    training=dataclasses.replace(teacher.training, steps=20_000),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=64))}
start = dataclasses.replace(ce_alone, init=FromTeacher())

experiment = Experiment(
    name="cnn_dailymail",
    source=Tfds("cnn_dailymail", fields={"article": "article", "highlights": "highlights"}),
    task=Summarization(
        document="article",
        summary="highlights",
        document_tokens=1000,
        lead_sentences=3,
        decoding=Decoding(beam=4, length_ratio=0.0, length=128),
    ),
    tokenizer=SentencePiece(vocab_size=32_000),
    buckets=(64, 96, 160),
    prompt_buckets=(512, 1024, 1024),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": start,
        "student_kd": dataclasses.replace(start, terms=ce_and_kd),
        "student_pseudo": dataclasses.replace(start, targets=PseudoTargets("best")),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd", controls=("student_init",)),
    evaluation=Evaluation(batch_size=16),
)
