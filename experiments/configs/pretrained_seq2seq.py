r"""A pretrained encoder-decoder teacher and a student with two of its decoder layers, English to French.

    python -m kd_jax run experiments/configs/pretrained_seq2seq.py --workdir runs/pretrained_seq2seq \
        --teacher.init.folder DIR

DIR is a local folder in Hugging Face's layout, for example:
- OPUS-MT (Helsinki-NLP/opus-mt-en-fr); with several target languages add `--tokenizer.target '>>fra<<'`
- NLLB with `--tokenizer.source eng_Latn --tokenizer.target fra_Latn`
- T5 with `--tokenizer.prefix "translate English to French: "`
See pretrained_lm.py for further options.
"""

import dataclasses

from kd_jax import (
    Comparison,
    Debian,
    Decoding,
    Evaluation,
    Experiment,
    FromHuggingFace,
    FromTeacher,
    HuggingFaceTokenizer,
    Optimizer,
    Recipe,
    Smaller,
    Term,
    TopK,
    Training,
    Translation,
    cross_entropy,
    forward_kl,
)

teacher = Recipe(
    model=None,
    init=FromHuggingFace(folder=""),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=0, tokens_per_batch=512, eval_every=100, optimizer=Optimizer(learning_rate=1e-4, warmup=20)
    ),
)
ce_alone = Recipe(
    model=Smaller(decoder_layers=2),
    init=FromTeacher(),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=300, tokens_per_batch=512, eval_every=150, optimizer=Optimizer(learning_rate=3e-4, warmup=30)
    ),
)
ce_and_kd = {"ce": Term(cross_entropy, weight=0.5), "kd": Term(forward_kl, weight=0.5, signal=TopK(k=32))}

experiment = Experiment(
    name="pretrained_seq2seq",
    source=Debian("en-fr", kinds=("synopsis",), limit=6000),
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    tokenizer=HuggingFaceTokenizer(cut=True),
    buckets=(16, 24, 48),
    teacher=teacher,
    students={"student_init": ce_alone, "student_kd": dataclasses.replace(ce_alone, terms=ce_and_kd)},
    comparison=Comparison(baseline="student_init", distilled="student_kd"),
    evaluation=Evaluation(texts=200, speed_texts=4, cached_k=64),
)
