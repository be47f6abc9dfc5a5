r"""A pretrained encoder-decoder teacher and a student with two of its decoder layers, English to French.

    python -m kd_jax run experiments/configs/pretrained_seq2seq.py --workdir runs/pretrained_seq2seq \
        --teacher.init.folder DIR

DIR is a local folder in Hugging Face's layout, for example:
- OPUS-MT (Helsinki-NLP/opus-mt-en-fr); with several target languages add `--tokenizer.target '>>fra<<'`
- NLLB with `--tokenizer.source eng_Latn --tokenizer.target fra_Latn`
- T5 with `--tokenizer.prefix "translate English to French: "`

The distilled student learns from the teacher's translations, its control from the references.

Length, measured with random parameters in OPUS-MT's shape (75 million, whole vocabulary) on two cores: the teacher
writes at least 5 sentences a second, so 6,000 take up to 20 minutes; a student's step takes 2.4 s, so STEPS below are
48 minutes for each of the two. Memory: 3 GiB. A vocabulary that is cut to the text is faster. For a first look add

    --source.limit 300 --students.student_init.training.steps 60 --students.student_kd.training.steps 60

See pretrained_lm.py for further options.
"""

import dataclasses

from kd_jax import (
    Debian,
    Decoding,
    Evaluation,
    Experiment,
    FromHuggingFace,
    HuggingFaceTokenizer,
    Optimizer,
    Recipe,
    Smaller,
    Term,
    Training,
    Translation,
    cross_entropy,
    recipes,
)

STEPS = 1200  # of each student, 512 tokens each

teacher = Recipe(
    model=None,
    init=FromHuggingFace(folder=""),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=0, tokens_per_batch=512, eval_every=100, optimizer=Optimizer(learning_rate=1e-4, warmup=20)
    ),
)
student = recipes.distil(teacher, Smaller(decoder_layers=2), STEPS, beam=2)
# A student that lacks layers is far from the teacher's minimum, so its steps are larger than a fine-tuning's.
student = dataclasses.replace(
    student, training=dataclasses.replace(student.training, optimizer=Optimizer(learning_rate=3e-4, warmup=30))
)
students = recipes.with_controls(student)

experiment = Experiment(
    name="pretrained_seq2seq",
    source=Debian("en-fr", kinds=("synopsis",), limit=6000),
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    tokenizer=HuggingFaceTokenizer(cut=True),
    buckets=(16, 24, 48),
    teacher=teacher,
    students={name: students[name] for name in ("student_init", "student_kd")},
    comparison=dataclasses.replace(recipes.COMPARISON, controls=("student_init",)),
    evaluation=Evaluation(texts=200, speed_texts=4, cached_k=64),
)
