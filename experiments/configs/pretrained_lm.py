"""A pretrained decoder-only teacher and a student with a third of its layers, on English package descriptions.

    python -m kd_jax run experiments/configs/pretrained_lm.py --workdir runs/pretrained_lm --teacher.init.folder DIR

DIR is a local folder in Hugging Face's layout, such as that of SmolLM2-135M. Its vocabulary is pruned to the tokens of
the text (`--tokenizer.cut False` keeps all).

Length: STEPS below sets it. The students see every text about twice, however long they train, since the number of
texts follows it. With 135 million parameters on two cores a step takes 2 to 3 s, so 1,200 steps are about an hour for
each of the two students. Before them the teacher is validated (10 min) and its top-k is stored (about 7 texts a
second, 20 to 45 min); the test split takes half an hour. Memory: 4 GiB, and 6 GiB for `plan`. A run that is killed
goes on where it stopped. For a first look (half an hour) add

    --source.limit 300 --students.student_init.training.steps 60 --students.student_kd.training.steps 60

`--students.student_kd.model.layers 6` makes a smaller student (likewise `student_init`). `--teacher.training.steps 200`
trains the teacher on the text first. The students' controls without its help are in docs/howto/own_teacher.md.
"""

import dataclasses

from kd_jax import (
    Debian,
    Evaluation,
    Experiment,
    FromHuggingFace,
    Generation,
    HuggingFaceTokenizer,
    Optimizer,
    Recipe,
    Smaller,
    Term,
    Training,
    cross_entropy,
    recipes,
)

STEPS = 1200  # of each student, 1,024 tokens each
TEXTS_PER_STEP = 7  # half of a batch is new text: two passes over the corpus

teacher = Recipe(
    model=None,
    init=FromHuggingFace(folder=""),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=0, tokens_per_batch=1024, packed=True, eval_every=100, optimizer=Optimizer(learning_rate=1e-4, warmup=20)
    ),
)
student = recipes.distil(teacher, Smaller(layers=10), STEPS, teacher_texts=False)
# A student that lacks most layers is far from the teacher's minimum, so its steps are larger than a fine-tuning's.
student = dataclasses.replace(
    student, training=dataclasses.replace(student.training, optimizer=Optimizer(learning_rate=1e-3, warmup=50))
)
students = recipes.with_controls(student)

experiment = Experiment(
    name="pretrained_lm",
    source=Debian("english", limit=TEXTS_PER_STEP * STEPS),
    task=Generation(window=256, context=64),
    tokenizer=HuggingFaceTokenizer(cut=True),
    buckets=(96, 256),
    prompt_buckets=(16, 32),
    teacher=teacher,
    students={name: students[name] for name in ("student_init", "student_kd")},
    comparison=dataclasses.replace(recipes.COMPARISON, controls=("student_init",)),
    evaluation=Evaluation(texts=100, speed_texts=4, cached_k=64),
)
