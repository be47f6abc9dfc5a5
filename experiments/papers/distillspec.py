"""DistillSpec: a draft model that learns on its own texts, so that its teacher accepts more of them.

Paper: Zhou et al. 2023, "DistillSpec: Improving Speculative Decoding via Knowledge Distillation", arXiv 2310.08461,
sections 4 and 5.

Question: does a teacher accept more tokens of a draft that learned on its own texts than of one that learned on the
references; and does it matter whether the draft learns by the forward divergence or by total variation, which is the
share that is refused?

    python -m kd_jax ablate experiments/papers/distillspec.py --workdir runs/distillspec --seeds 0 1 2 --metric all

About 25 minutes a seed on two idle cores, estimated. Read `acceptance`: 1 - total variation on the test references. The
drafts that a teacher accepted in speculative decoding are in each seed's report, for the leading student.

The paper reports, in its abstract: speculative decoding 10 to 45% faster than with a draft that was not distilled, and
that own texts of the draft and the choice of the divergence are crucial. Its tables were not checked. So the expected
order is: own texts above references with the teacher above references alone.

What differs here: English to French synopses of Debian packages; a draft of one layer and half the teacher's width that
starts from random parameters, and trains on the references for 700 updates before all others continue it for 700.
Sampling is at temperature 1.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import (
    Comparison,
    Evaluation,
    FromStudent,
    Online,
    OnPolicy,
    Smaller,
    Term,
    forward_kl,
    load_experiment,
    total_variation,
)

kim_rush = load_experiment(Path(__file__).with_name("kim_rush.py"))
references = load_experiment(Path(__file__).parents[1] / "configs/quickstart_references.py")
ce = kim_rush.students["ce"]
training = dataclasses.replace(ce.training, steps=700, eval_every=350)
start = dataclasses.replace(ce, training=training)
more = dataclasses.replace(
    start,
    model=Smaller(),
    init=FromStudent("start"),
    training=dataclasses.replace(
        training, optimizer=dataclasses.replace(training.optimizer, learning_rate=1e-3), eval_every=175
    ),
)
forward, variation = ({"kd": Term(loss, signal=Online())} for loss in (forward_kl, total_variation))
own = OnPolicy(share=1.0)

experiment = dataclasses.replace(
    references,
    name="distillspec",
    students={
        "start": start,
        "ce": more,
        "forward": dataclasses.replace(more, terms=forward),
        "variation": dataclasses.replace(more, terms=variation),
        "own_forward": dataclasses.replace(more, terms=forward, targets=own),
        "own_variation": dataclasses.replace(more, terms=variation, targets=own),
    },
    comparison=Comparison("ce", "own_forward", controls=("start", "ce", "forward", "variation")),
    evaluation=Evaluation(speed_texts=4, draft=4, own_texts=400),
)
