"""All phases of language modelling on made-up documents, in one to six minutes.

python -m kd_jax run experiments/configs/smoke_lm.py --workdir runs/smoke_lm
"""

import dataclasses

from kd_jax import Generation, Term, Toy, cross_entropy, load_experiment

smoke = load_experiment(__file__.replace("smoke_lm", "smoke_summaries"))

experiment = dataclasses.replace(
    smoke,
    name="smoke_lm",
    source=Toy(kind="documents", examples=400),
    task=Generation(window=64, context=16, prompt_words=3, compared_words=12),
    buckets=(64,),
    prompt_buckets=(16,),
    teacher=dataclasses.replace(smoke.teacher, terms={"ce": Term(cross_entropy)}),
)
