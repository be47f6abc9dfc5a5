"""One Billion Word: sentences packed into rows of 256 tokens; a student with half of the teacher's layers.

    python -m kd_jax run experiments/configs/tfds/lm1b.py --workdir runs/lm1b

Sanh et al. 2019 (arXiv 1910.01108) initialise the student from every second layer of the teacher, as for DistilGPT2.
Anshumann et al. 2025 (arXiv 2503.16870): tokens sampled from the teacher's distribution beat its most probable ones
(`student_sampled`). `source.limit` keeps 5 of the 30 million sentences.
"""

import dataclasses

from kd_jax import (
    Comparison,
    DecoderOnly,
    Experiment,
    FromTeacher,
    Generation,
    Optimizer,
    Recipe,
    Sampled,
    SentencePiece,
    Term,
    Tfds,
    TopK,
    Training,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=DecoderOnly(layers=12, d_model=768, heads=12, kv_heads=4, d_ff=2048, dropout=0.0),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=100_000,
        tokens_per_batch=32_768,
        packed=True,
        microbatches=4,
        eval_every=5000,
        optimizer=Optimizer(learning_rate=6e-4, warmup=2000, beta2=0.95, weight_decay=0.1),
    ),
)
ce_alone = dataclasses.replace(
    teacher,
    model=dataclasses.replace(teacher.model, layers=6),
    training=dataclasses.replace(teacher.training, steps=50_000),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=64))}
ce_and_sampled = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=Sampled(draws=50))}
start = dataclasses.replace(ce_alone, init=FromTeacher())

experiment = Experiment(
    name="lm1b",
    source=Tfds("lm1b", fields={"text": "text"}, validation="test[:10%]", test="test[10%:20%]", limit=5_000_000),
    task=Generation(text="text", window=256, context=64),
    tokenizer=SentencePiece(vocab_size=32_000, model_type="bpe"),
    buckets=(256,),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": start,
        "student_kd": dataclasses.replace(start, terms=ce_and_kd),
        "student_sampled": dataclasses.replace(start, terms=ce_and_sampled),
    },
    comparison=Comparison(baseline="student_scratch", distilled="student_kd", controls=("student_init",)),
)
