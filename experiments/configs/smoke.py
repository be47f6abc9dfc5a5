"""All phases on a made-up language, for tests and a first look: one to six minutes. The figures mean nothing.

python -m kd_jax run experiments/configs/smoke.py --workdir runs/smoke
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
    Recipe,
    SentencePiece,
    Term,
    TopK,
    Toy,
    Training,
    Translation,
    cross_entropy,
    forward_kl,
)

optimizer = Optimizer(learning_rate=5e-3, warmup=20)
teacher = Recipe(
    model=EncoderDecoder(encoder_layers=2, decoder_layers=2, d_model=32, heads=2, d_ff=64, dropout=0.0),
    terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})},
    training=Training(steps=240, tokens_per_batch=512, eval_every=120, optimizer=optimizer),
)
ce_alone = Recipe(
    model=dataclasses.replace(teacher.model, decoder_layers=1),
    terms={"ce": Term(cross_entropy)},
    training=Training(steps=60, tokens_per_batch=512, eval_every=30, optimizer=optimizer),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.3), "kd": Term(forward_kl, weight=0.7, signal=TopK(k=8))}

experiment = Experiment(
    name="smoke",
    source=Toy(examples=400),
    task=Translation(source="en", target="fr", decoding=Decoding(beam=2)),
    tokenizer=SentencePiece(vocab_size=64),
    buckets=(32,),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": dataclasses.replace(ce_alone, init=FromTeacher()),
        "student_kd": dataclasses.replace(ce_alone, init=FromTeacher(), terms=ce_and_kd),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd"),
    evaluation=Evaluation(bootstrap=100, speed_texts=4),
)
