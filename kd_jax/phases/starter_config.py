"""A teacher, and students of half its depth: one learns from the teacher, three are its controls.

    kd-jax plan mine.py
    kd-jax run mine.py --workdir runs/mine
    kd-jax ablate mine.py --workdir runs/mine-seeds --seeds 0 1 2

`plan` estimates what the teacher's knowledge costs to keep. `run` does everything, and resumes where it was stopped.
`ablate` tells with several seeds whether distillation helps. The sizes suit some thousand lines and two cores, for a
run of minutes. Change first: the source, the buckets (how long are your texts?), the steps. Any field can be changed
without an edit: --teacher.training.steps 2000
"""

import kd_jax as kd

# The data: one JSON object a line, whose field names the task has. A twentieth each is held out for validation and
# test, unless they have files of their own: validation=("validation.jsonl",), test=("test.jsonl",).
source = kd.Files(train=("train.jsonl",), held_out=0.05)
task = kd.Translation(source="en", target="fr")
# Padded lengths in tokens; longer training examples are skipped. Empty prompt_buckets: the same lengths for prompts.
buckets = (16, 32, 64)
prompt_buckets = ()

# The networks. On an accelerator, a longer run takes a teacher of 6 or 12 layers and d_model=512, 20 times the steps,
# 16 times the tokens, eval_every=1000, warmup=1000 and learning_rate=5e-4.
teacher_model = kd.EncoderDecoder(encoder_layers=3, decoder_layers=3, d_model=128, heads=4, d_ff=512, dropout=0.1)
# The students' sizes; what is not named is as in the teacher. Narrower ones too: d_model=64, heads=2, d_ff=256.
student_model = kd.Smaller(encoder_layers=2, decoder_layers=1)
# Does the teacher write the texts that the student learns? It pays most where references are few: references=2000 lets
# all students have so many, and the distilled one the teacher's texts for the other sources.
teacher_texts = True
references = 0  # all
tokens_per_batch = 512  # padded target tokens
label_smoothing = 0.1

teacher = kd.Recipe(
    model=teacher_model,
    terms={"ce": kd.Term(kd.cross_entropy, options={"label_smoothing": label_smoothing})},
    training=kd.Training(
        steps=500,
        tokens_per_batch=tokens_per_batch,
        packed=True,  # short examples share a row
        eval_every=250,
        optimizer=kd.Optimizer(learning_rate=2e-3, warmup=100),
    ),
)
# Half of the loss is the distance to the teacher's 32 most probable tokens, from a cache; any field can be replaced.
student = kd.recipes.distil(teacher, student_model, steps=300, references=references, teacher_texts=teacher_texts)

experiment = kd.Experiment(
    name="mine",
    source=source,
    task=task,
    # Trained on the training texts. A longer run: 8000 to 32000; a few hundred lines fill a few hundred.
    tokenizer=kd.SentencePiece(vocab_size=2000),
    buckets=buckets,
    prompt_buckets=prompt_buckets,
    teacher=teacher,
    # student_kd, and what it is worth: the same student without a teacher, from the teacher's layers (student_init,
    # student_smoothed) and from random parameters (student_scratch).
    students=kd.recipes.with_controls(student),
    comparison=kd.recipes.COMPARISON,
    # Every model writes texts for at most 300 test examples; texts=0 for all.
    evaluation=kd.Evaluation(texts=300),
)
