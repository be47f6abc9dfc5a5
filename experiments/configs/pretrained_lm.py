"""A pretrained decoder-only teacher and a student with a third of its layers, on English package descriptions.

    python -m kd_jax run experiments/configs/pretrained_lm.py --workdir runs/pretrained_lm --teacher.init.folder DIR

DIR is a local folder in Hugging Face's layout, such as that of SmolLM2-135M. Its vocabulary is pruned to the tokens of
the text (`--tokenizer.cut False` keeps all). `--teacher.training.steps 200` trains the teacher on the text first.
`--students.student_kd.model.layers 6` makes a smaller student (likewise `student_init`).
"""

import dataclasses

from kd_jax import (
    Comparison,
    Debian,
    Evaluation,
    Experiment,
    FromHuggingFace,
    FromTeacher,
    Generation,
    HuggingFaceTokenizer,
    Optimizer,
    Recipe,
    Smaller,
    Term,
    TopK,
    Training,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=None,
    init=FromHuggingFace(folder=""),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=0, tokens_per_batch=1024, packed=True, eval_every=100, optimizer=Optimizer(learning_rate=1e-4, warmup=20)
    ),
)
ce_alone = Recipe(
    model=Smaller(layers=10),
    init=FromTeacher(),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=300,
        tokens_per_batch=1024,
        packed=True,
        eval_every=150,
        optimizer=Optimizer(3e-4, warmup=30),
    ),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}

experiment = Experiment(
    name="pretrained_lm",
    source=Debian("english", limit=3000),
    task=Generation(window=256, context=64),
    tokenizer=HuggingFaceTokenizer(cut=True),
    buckets=(96, 256),
    prompt_buckets=(16, 32),
    teacher=teacher,
    students={"student_init": ce_alone, "student_kd": dataclasses.replace(ce_alone, terms=ce_and_kd)},
    comparison=Comparison(baseline="student_init", distilled="student_kd"),
    evaluation=Evaluation(texts=100, speed_texts=4, cached_k=64),
)
