"""English package descriptions of Debian as a language model: a teacher of 6 layers, students of 2.

python -m kd_jax run experiments/configs/debian_lm.py --workdir runs/debian_lm
"""

import dataclasses

from kd_jax import (
    Comparison,
    Debian,
    DecoderOnly,
    Evaluation,
    Experiment,
    FromTeacher,
    Generation,
    Optimizer,
    Recipe,
    SentencePiece,
    Term,
    TopK,
    Training,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=DecoderOnly(layers=6, d_model=192, heads=6, d_ff=512, dropout=0.1),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=2400, tokens_per_batch=2048, packed=True, eval_every=600, optimizer=Optimizer(learning_rate=3e-3)
    ),
)
ce_alone = Recipe(
    model=dataclasses.replace(teacher.model, layers=2, dropout=0.0),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=1200, tokens_per_batch=2048, packed=True, eval_every=600, optimizer=Optimizer(learning_rate=3e-3)
    ),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}

experiment = Experiment(
    name="debian_lm",
    source=Debian("english"),
    task=Generation(window=256, context=64),
    tokenizer=SentencePiece(vocab_size=4000),
    buckets=(96, 256),
    prompt_buckets=(16, 32),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": dataclasses.replace(ce_alone, init=FromTeacher()),
        "student_kd": dataclasses.replace(ce_alone, init=FromTeacher(), terms=ce_and_kd),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd"),
    evaluation=Evaluation(texts=400),
)
