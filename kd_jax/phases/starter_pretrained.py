"""A pretrained teacher, and students with half of its layers: one learns from the teacher, one is its control.

    kd-jax run mine.py --workdir runs/mine
    kd-jax ablate mine.py --workdir runs/mine-seeds --seeds 0 1 2

`run` does everything, and resumes where it was stopped. `ablate` tells with several seeds whether distillation helps.
The steps suit some thousand lines. Change first: the source, the buckets (how long are your texts?), the student's
layers, the steps. Any field can be changed without an edit: --students.student_kd.training.steps 2000
"""

import dataclasses

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
    training=kd.Training(steps=0, tokens_per_batch=1024),
)
# Starts from the teacher's layers and trains without its help: without this control, distillation is easily overrated.
student_init = kd.Recipe(
    model=student_model,
    init=kd.FromTeacher(),
    terms={"ce": kd.Term(kd.cross_entropy)},
    training=kd.Training(
        steps=300, tokens_per_batch=1024, eval_every=100, optimizer=kd.Optimizer(learning_rate=3e-4, warmup=30)
    ),
)
# With its help: half of the loss is the distance to the teacher's 32 most probable tokens, from a cache.
ce_and_kd = {
    "ce": kd.Term(kd.cross_entropy, weight=0.5),
    "kd": kd.Term(kd.forward_kl, weight=0.5, signal=kd.TopK(k=32)),
}

experiment = kd.Experiment(
    name="mine",
    source=source,
    task=task,
    tokenizer=tokenizer,
    buckets=buckets,
    prompt_buckets=prompt_buckets,
    teacher=teacher,
    students={"student_init": student_init, "student_kd": dataclasses.replace(student_init, terms=ce_and_kd)},
    comparison=kd.Comparison(baseline="student_init", distilled="student_kd"),
    # Every model writes texts for at most 200 test examples; texts=0 for all.
    evaluation=kd.Evaluation(texts=200, speed_texts=4),
)
