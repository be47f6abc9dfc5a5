"""RS-KD: which part of the teacher's distribution should a cache hold?

Paper: Anshumann et al. 2025, "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", arXiv 2503.16870,
sections 3 and 4 (bias of the top k; Random Sampling KD).

Question: does a student learn as much from a few drawn tokens as from the whole distribution, and is it miscalibrated
when it learns from the most likely tokens alone?

    python -m kd_jax ablate experiments/papers/rs_kd.py --workdir runs/rs_kd --seeds 0 1 2

About 30 minutes a seed on two idle cores, estimated. Calibration errors are in each seed's report.

The paper reports, in its abstract: the top k gives a biased estimate, and with it worse students and calibration;
drawn tokens preserve the gradient in expectation, and stay competitive with the full distribution from 300M to 3B
parameters, at less than 10% more time than cross-entropy. Its tables were not checked. So the expected order is: full,
drawn, top k with its tail, top k without; the last one less calibrated than cross-entropy.

What differs here: a teacher of 1.2 M parameters outside the embeddings and a student of one layer at half its width,
from random parameters; 4,000 tokens in the vocabulary; 1,000 updates on 10,000 texts. The paper's draws have a
proposal of its own temperature; here it is 1, and the draws are stratified. `topk_tail` (the other tokens as one) is
not in the paper. All students with a teacher learn from it alone, without the references.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import Comparison, Evaluation, Online, Sampled, Term, TopK, forward_kl, load_experiment

lm = load_experiment(Path(__file__).parents[1] / "configs/pays_lm.py")
ce = lm.students["small_ce"]  # one layer of half the teacher's width, from random parameters


def student(signal):
    """Return the student that learns from a signal alone."""
    return dataclasses.replace(ce, terms={"kd": Term(forward_kl, signal=signal)})


experiment = dataclasses.replace(
    lm,
    name="rs_kd",
    students={
        "ce": ce,
        "topk_zero": student(TopK(k=12, tail="zero")),  # the paper's top k
        "topk_renormalise": student(TopK(k=12, tail="renormalise")),
        "topk_tail": student(TopK(k=50)),
        "sampled": student(Sampled(draws=50)),
        "full": student(Online()),
    },
    comparison=Comparison("ce", "sampled", controls=("ce", "full")),
    evaluation=Evaluation(texts=200, speed_texts=4, draft=0),
)
