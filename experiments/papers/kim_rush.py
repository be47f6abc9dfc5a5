"""Kim and Rush: distillation of words, of sequences, and both, for translation.

Paper: Kim and Rush 2016, "Sequence-Level Knowledge Distillation", arXiv 1606.07947, sections 3.1 to 3.3 and table 1.

Question: is a small translator better if it learns from the teacher's distribution of each word, from the teacher's
translations, from those closest to the references, or from both; and does it still need beam search?

    python -m kd_jax ablate experiments/papers/kim_rush.py --workdir runs/kim_rush --seeds 0 1 2

About 20 minutes a seed on two idle cores, estimated. BLEU with beam search is in each seed's report.

The paper reports, English to German, student of 2 x 500, BLEU greedy and with a beam of 5: alone 14.7 and 17.6, words
15.4 and 17.7, sequences 18.9 and 19.0. These figures of table 1 are from a transcription; the abstract confirms the
gain of 4.2 greedy. So the expected order is: sequences above words above alone, by far more without beam search than
with it.

What differs here: Transformers in place of LSTMs; English to French synopses of Debian packages; a student of one
layer and half the teacher's width, from random parameters, 1,400 updates. The hypotheses are the five of a beam of 5
(the paper interpolates over 35). `inter` trains on the interpolated targets from the start; the paper fine-tunes on
them. `word` and `both` mix references or sequences with the teacher's top 32 half and half.

Figures: not run yet.
"""

import dataclasses
from pathlib import Path

from kd_jax import (
    Comparison,
    Decoding,
    EncoderDecoder,
    Evaluation,
    PseudoTargets,
    Random,
    Term,
    TopK,
    Translation,
    cross_entropy,
    forward_kl,
    load_experiment,
)

quickstart = load_experiment(Path(__file__).parents[1] / "configs/quickstart_references.py")
scratch = quickstart.students["student_scratch"]
ce = dataclasses.replace(
    scratch,
    model=EncoderDecoder(encoder_layers=1, decoder_layers=1, d_model=64, heads=2, d_ff=256, dropout=0.0),
    init=Random(),
    training=dataclasses.replace(scratch.training, steps=1400, eval_every=700),
)
words = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}
sequences, interpolated = PseudoTargets("best", beam=5), PseudoTargets("interpolated", beam=5)

experiment = dataclasses.replace(
    quickstart,
    name="kim_rush",
    task=Translation(source="en", target="fr", decoding=Decoding(beam=4)),
    students={
        "ce": ce,
        "word": dataclasses.replace(ce, terms=words),
        "seq": dataclasses.replace(ce, targets=sequences),
        "inter": dataclasses.replace(ce, targets=interpolated),
        "both": dataclasses.replace(ce, terms=words, targets=sequences),
        "both_inter": dataclasses.replace(ce, terms=words, targets=interpolated),
    },
    comparison=Comparison("ce", "seq", controls=("ce", "word")),
    evaluation=Evaluation(speed_texts=4, draft=0),
)
