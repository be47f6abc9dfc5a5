"""A pretrained teacher, and students with half of its layers: one learns from the teacher, the others are controls.

    kd-jax run mine.py --workdir runs/mine
    kd-jax ablate mine.py --workdir runs/mine-seeds --seeds 0 1 2

`run` does everything, and resumes where it was stopped. `ablate` tells with several seeds whether distillation helps.
The steps suit some thousand lines. Change first: the source, the buckets (how long are your texts?), the student's
layers, the steps. Any field can be changed without an edit: --students.student_kd.training.steps 2000
"""

import kd_jax as kd

# The data: one JSON object a line, whose field names the task has. A twentieth each is held out for validation and
# test, unless they have files of their own: validation=("validation.jsonl",), test=("test.jsonl",).
source = kd.Files(train=("train.jsonl",), held_out=0.05)
task = kd.Translation(source="en", target="fr")
# Padded lengths in tokens; longer training examples are skipped. Empty prompt_buckets: the same lengths for prompts.
buckets = (16, 32, 64)
prompt_buckets = ()
# cut: tokens that the text does not use are removed from both models.
tokenizer = kd.HuggingFaceTokenizer(cut=True)

folder = "models/teacher"
student_model = kd.Smaller(layers=1)
# Used as it is. To train it on the text first, give it steps and a small learning rate.
teacher = kd.Recipe(
    model=None,
    init=kd.FromHuggingFace(folder),
    terms={"ce": kd.Term(kd.cross_entropy)},
    # Batches and optimizer are the students' too.
    training=kd.Training(steps=0, tokens_per_batch=1024, optimizer=kd.Optimizer(learning_rate=3e-4, warmup=30)),
)
# Half of the loss is the distance to the teacher's 32 most probable tokens, from a cache; any field can be replaced.
# teacher_texts=True: the student learns from the teacher's own texts. It often gains most, and takes the teacher a beam
# search for every prompt.
student = kd.recipes.distil(teacher, student_model, steps=300, teacher_texts=False)

experiment = kd.Experiment(
    name="mine",
    source=source,
    task=task,
    tokenizer=tokenizer,
    buckets=buckets,
    prompt_buckets=prompt_buckets,
    teacher=teacher,
    # student_kd and its controls: the same student without its teacher's help, from the teacher's layers (student_init,
    # student_smoothed) and from random parameters (student_scratch).
    students=kd.recipes.with_controls(student),
    comparison=kd.recipes.COMPARISON,
    # Every model writes texts for at most 200 test examples; texts=0 for all.
    evaluation=kd.Evaluation(texts=200, speed_texts=4),
)
