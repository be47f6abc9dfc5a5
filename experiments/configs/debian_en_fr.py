"""English-French package descriptions of Debian, synopses and paragraphs: a teacher of 4+4 layers, a student of 3+1.

    python -m kd_jax run experiments/configs/debian_en_fr.py --workdir runs/debian_en_fr

The student has less than half of the teacher's parameters outside the embeddings.
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
    model=EncoderDecoder(encoder_layers=4, decoder_layers=4, d_model=160, heads=4, d_ff=640, dropout=0.1),
    terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})},
    training=Training(
        steps=8000, tokens_per_batch=640, eval_every=1000, optimizer=Optimizer(learning_rate=2.5e-3, warmup=500)
    ),
)
ce_alone = Recipe(
    # The students train for too few steps to overfit, so they need no dropout.
    model=dataclasses.replace(teacher.model, encoder_layers=3, decoder_layers=1, dropout=0.0),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=3000, tokens_per_batch=640, eval_every=500, optimizer=Optimizer(learning_rate=3e-3, warmup=200)
    ),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}

experiment = Experiment(
    name="debian_en_fr",
    source=Debian(config="en-fr", kinds=("synopsis", "paragraph"), max_characters=200),
    task=Translation(source="en", target="fr"),
    tokenizer=SentencePiece(vocab_size=4000),
    buckets=(16, 32, 64),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": dataclasses.replace(ce_alone, init=FromTeacher()),
        "student_kd": dataclasses.replace(ce_alone, init=FromTeacher(), terms=ce_and_kd),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd"),
    evaluation=Evaluation(),
)
