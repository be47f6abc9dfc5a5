"""MiniLLM: a small language model that follows instructions, from the reverse divergence on its own answers.

Paper: Gu et al. 2023, "MiniLLM: Knowledge Distillation of Large Language Models", arXiv 2306.08543, sections 2 and 3.

Question: is the reverse divergence on the student's own answers better than the forward one on the teacher's answers;
and what is due to the divergence, what to the answers?

    python -m kd_jax ablate experiments/papers/minillm.py --workdir runs/minillm --seeds 0 1 2 --metric all

About 35 minutes a seed on two idle cores, estimated. `--metric all` compares closeness and variety too.

The paper reports, in its abstract: more precise answers of higher quality, lower exposure bias, better calibration and
better long answers than baselines, from 120M to 13B parameters. As a third page has it, ROUGE-L of GPT-2 120M on Dolly
is 23.3 fine-tuned and 24.6 with MiniLLM; its tables were not checked. So the expected order is: `own_reverse` first.

What differs here: questions about Debian's packages, with answers of a few words. A teacher of four layers that knows
all answers; a student of two layers at half its width, which has 2,000 references and the teacher's answers to all
questions. All students continue `start` for 400 updates at a third of its rate. The divergence is exact for each token,
over the whole vocabulary; the paper follows the gradient of whole answers too, with a teacher mixed into the writing
and a language-model loss on other text.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import (
    Comparison,
    DecoderOnly,
    Evaluation,
    FromStudent,
    Online,
    OnPolicy,
    Smaller,
    Term,
    forward_kl,
    load_experiment,
    recipes,
    reverse_kl,
)

instructions = load_experiment(Path(__file__).parents[1] / "configs/instructions.py")
teacher = dataclasses.replace(
    instructions.teacher,
    model=DecoderOnly(layers=4, d_model=128, heads=4, d_ff=352, dropout=0.0),
    training=dataclasses.replace(instructions.teacher.training, steps=1500, eval_every=500),
)
start = recipes.distil(teacher, Smaller(layers=2, d_model=64, heads=2, d_ff=176), steps=800, references=2000, beam=1)
optimizer = dataclasses.replace(start.training.optimizer, learning_rate=1e-3)
more = dataclasses.replace(
    start,
    model=Smaller(),
    init=FromStudent("start"),
    training=dataclasses.replace(start.training, steps=400, eval_every=200, optimizer=optimizer),
)
forward, reverse = ({"kd": Term(loss, signal=Online())} for loss in (forward_kl, reverse_kl))
own = OnPolicy(share=1.0, others=start.pseudo_targets)

experiment = dataclasses.replace(
    instructions,
    name="minillm",
    teacher=teacher,
    students={
        "start": start,
        "more": more,
        "forward": dataclasses.replace(more, terms=forward),
        "reverse": dataclasses.replace(more, terms=reverse),
        "own_forward": dataclasses.replace(more, terms=forward, targets=own),
        "own_reverse": dataclasses.replace(more, terms=reverse, targets=own),
    },
    comparison=Comparison("more", "own_reverse", controls=("start", "more", "forward")),
    evaluation=Evaluation(texts=600, speed_texts=4, draft=0, own_texts=400),
)
