"""The whole pipeline in under a minute, on a made-up language: for tests and a first look. Its figures mean nothing.

python -m kd_jax run experiments/configs/smoke.py --workdir runs/smoke
"""

import dataclasses

from kd_jax.data.sources import Toy
from kd_jax.data.tokenizers import SentencePiece
from kd_jax.experiment import Evaluation, Experiment, Recipe, Training
from kd_jax.losses.cross_entropy import cross_entropy
from kd_jax.losses.divergence import forward_kl
from kd_jax.models.encoder_decoder import EncoderDecoder
from kd_jax.models.init import FromTeacher
from kd_jax.objective.terms import Term
from kd_jax.optim.optimizer import Optimizer
from kd_jax.signals.topk import TopK
from kd_jax.tasks.translation import Translation

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
    task=Translation(source="en", target="fr"),
    tokenizer=SentencePiece(vocab_size=64),
    buckets=(12, 32),
    teacher=teacher,
    students={
        "student_scratch": ce_alone,
        "student_init": dataclasses.replace(ce_alone, init=FromTeacher()),
        "student_kd": dataclasses.replace(ce_alone, init=FromTeacher(), terms=ce_and_kd),
    },
    evaluation=Evaluation(beam=2, bootstrap=100, speed_sentences=4),
)
