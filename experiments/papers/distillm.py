"""DistiLLM: skewed divergences, and own answers that are stored and learned from more than once.

Paper: Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models", arXiv 2402.03898,
sections 3.1 and 3.2.

Question: are the skewed divergences better than the plain forward one, and do stored answers of the student lose
anything against answers that are written all the time?

    python -m kd_jax ablate experiments/papers/distillm.py --workdir runs/distillm --seeds 0 1 2 --metric all

About 35 minutes a seed on two idle cores, estimated. `--metric all` compares the KL on own answers too.

The paper reports, in its abstract: better students than recent methods, up to 4.3 times as fast. Its tables were not
checked. So the expected order is: skewed divergences above plain ones, own answers above the teacher's, and stored
answers level with live ones.

What differs here: teacher, start and data of minillm.py. All students continue `start` for 400 updates. The skew is
0.1. The share of own answers is 0.5 throughout; the paper raises it where the validation loss asks for it. `rounds`
writes answers four times, and reads the teacher's top 64 for them from a cache; `live` writes every 50 updates, with
the teacher's whole distribution in the step.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import (
    Comparison,
    Online,
    OnPolicy,
    Rounds,
    Term,
    TopK,
    load_experiment,
    skewed_forward_kl,
    skewed_reverse_kl,
)

minillm = load_experiment(Path(__file__).with_name("minillm.py"))
start, more, forward = (minillm.students[name] for name in ("start", "more", "forward"))
teacher_texts = start.pseudo_targets


def student(loss, signal, targets):
    """Return the student that learns from the teacher alone, by this loss."""
    return dataclasses.replace(more, terms={"kd": Term(loss, signal=signal, options={"alpha": 0.1})}, targets=targets)


experiment = dataclasses.replace(
    minillm,
    name="distillm",
    students={
        "start": start,
        "more": more,
        "forward": forward,
        "skewed_forward": student(skewed_forward_kl, Online(), teacher_texts),
        "skewed_reverse": student(skewed_reverse_kl, Online(), teacher_texts),
        "live": student(skewed_reverse_kl, Online(), OnPolicy(share=0.5, others=teacher_texts)),
        "rounds": student(skewed_reverse_kl, TopK(k=64), Rounds(share=0.5, count=4, others=teacher_texts)),
    },
    comparison=Comparison("more", "live", controls=("start", "more", "forward", "skewed_reverse")),
)
