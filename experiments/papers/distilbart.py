"""DistilBART: shrink and fine-tune, against distillation and pseudo-labels, for summaries.

Paper: Shleifer and Rush 2020, "Pre-trained Summarization Distillation", arXiv 2010.13002, section 4.

Question: does a student with layers of its teacher need the teacher any further, or is fine-tuning on the references
enough?

    python -m kd_jax ablate experiments/papers/distilbart.py --workdir runs/distilbart --seeds 0 1 2

About 30 minutes a seed on two idle cores, estimated.

The paper reports, in its abstract: shrink and fine-tune is better than distillation and pseudo-labels on
CNN/DailyMail, and worse than pseudo-labels on the more abstractive XSum. Its tables were not checked. Synopses are
short and abstractive, as in XSum.

What differs here: nothing is pretrained; the teacher of 3+3 layers trains on 15,000 descriptions of Debian packages
for 1,500 updates. The student keeps the teacher's encoder and one decoder layer, and trains for 1,000. `kd_hidden`
adds the hidden states of the decoder, as the paper's loss does, at weights that were not tuned. `scratch` and
`scratch_pseudo` start from random parameters; they are not in the paper.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import (
    Comparison,
    Evaluation,
    FromTeacher,
    HiddenStates,
    PseudoTargets,
    Random,
    Term,
    TopK,
    cross_entropy,
    forward_kl,
    load_experiment,
    mse,
)

summaries = load_experiment(Path(__file__).parents[1] / "configs/pays_summaries.py")
init_ce = summaries.students["init_ce"]
sft = dataclasses.replace(
    init_ce,
    model=dataclasses.replace(init_ce.model, encoder_layers=3, decoder_layers=1),
    init=FromTeacher(decoder=(0,)),
    training=dataclasses.replace(init_ce.training, steps=1000, eval_every=500),
)
kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}
hidden = {"hidden": Term(mse, weight=0.1, signal=HiddenStates(stack="decoder", layers=((0, 2),)))}
pseudo_labels = PseudoTargets("best", beam=4)

experiment = dataclasses.replace(
    summaries,
    name="distilbart",
    students={
        "sft": sft,
        "kd": dataclasses.replace(sft, terms=kd),
        "kd_hidden": dataclasses.replace(sft, terms=kd | hidden),
        "pseudo": dataclasses.replace(sft, targets=pseudo_labels),
        "scratch": dataclasses.replace(sft, init=Random()),
        "scratch_pseudo": dataclasses.replace(sft, init=Random(), targets=pseudo_labels),
    },
    comparison=Comparison("scratch", "kd", controls=("sft", "scratch")),
    evaluation=Evaluation(texts=600, speed_texts=4, draft=0),
)
