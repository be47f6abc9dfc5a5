"""Questions about Debian's package index, answered by a decoder-only model: what is it, which is it, where is it?

    python -m kd_jax run experiments/configs/instructions.py --workdir runs/instructions
    echo "In which section of Debian is the package gimp?" | python -m kd_jax generate --workdir runs/instructions

Your own prompts and responses: source=Files(train=("mine.jsonl",)), a {"prompt": "...", "response": "..."} a line.
"""

import dataclasses

from kd_jax import (
    Comparison,
    Debian,
    DecoderOnly,
    Decoding,
    Evaluation,
    Experiment,
    FromTeacher,
    Instructions,
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
        steps=2000, tokens_per_batch=1024, packed=True, eval_every=500, optimizer=Optimizer(learning_rate=2e-3)
    ),
)
ce_alone = Recipe(
    model=dataclasses.replace(teacher.model, layers=2, dropout=0.0),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=800, tokens_per_batch=1024, packed=True, eval_every=400, optimizer=Optimizer(learning_rate=2e-3)
    ),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}

experiment = Experiment(
    name="instructions",
    source=Debian("index"),
    task=Instructions(decoding=Decoding(beam=1, length_ratio=0.0, length=32)),
    tokenizer=SentencePiece(vocab_size=4000),
    buckets=(12, 32),
    prompt_buckets=(36, 96),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": dataclasses.replace(ce_alone, init=FromTeacher()),
        "student_kd": dataclasses.replace(ce_alone, init=FromTeacher(), terms=ce_and_kd),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd"),
    evaluation=Evaluation(texts=1000),
)
