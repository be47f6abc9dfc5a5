"""English-French synopses of Debian packages: a teacher of 3+3 layers, a student of 2+1; 7 to 14 minutes on two cores.

python -m kd_jax run experiments/configs/quickstart_references.py --workdir runs/quickstart_references

Teacher and students have the same references, all of them. With few references on the student's side: quickstart.py.
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
    Term,
    TopK,
    Training,
    Translation,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=EncoderDecoder(encoder_layers=3, decoder_layers=3, d_model=128, heads=4, d_ff=512, dropout=0.1),
    terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})},
    training=Training(steps=2000, tokens_per_batch=512, eval_every=500, optimizer=Optimizer(learning_rate=3e-3)),
)
ce_alone = Recipe(
    # The students train for too few steps to overfit, so they need no dropout.
    model=dataclasses.replace(teacher.model, encoder_layers=2, decoder_layers=1, dropout=0.0),
    terms={"ce": Term(cross_entropy)},
    training=Training(steps=700, tokens_per_batch=512, eval_every=350, optimizer=Optimizer(learning_rate=3e-3)),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}

experiment = Experiment(
    name="quickstart_references",
    source=Debian(config="en-fr", kinds=("synopsis",)),
    task=Translation(source="en", target="fr"),
    tokenizer=SentencePiece(vocab_size=4000),
    buckets=(12, 20, 36),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": dataclasses.replace(ce_alone, init=FromTeacher()),
        "student_kd": dataclasses.replace(ce_alone, init=FromTeacher(), terms=ce_and_kd),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd"),
    evaluation=Evaluation(),
)
