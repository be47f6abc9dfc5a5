"""English package descriptions of Debian as a language model: a teacher of 6 layers, students of 2.

python -m kd_jax run experiments/configs/debian_lm.py --workdir runs/debian_lm

The students have 31% of the teacher's parameters outside the embeddings and read the same text.
"""

from kd_jax import (
    Debian,
    DecoderOnly,
    Evaluation,
    Experiment,
    Generation,
    Optimizer,
    Recipe,
    SentencePiece,
    Smaller,
    Term,
    Training,
    cross_entropy,
    recipes,
)

teacher = Recipe(
    model=DecoderOnly(layers=6, d_model=192, heads=6, d_ff=512, dropout=0.0),
    terms={"ce": Term(cross_entropy)},
    training=Training(
        steps=2400, tokens_per_batch=1024, packed=True, eval_every=600, optimizer=Optimizer(learning_rate=3e-3)
    ),
)
student = recipes.distil(teacher, Smaller(layers=2, d_ff=448), steps=800, teacher_texts=False)

experiment = Experiment(
    name="debian_lm",
    source=Debian("english", limit=20_000),
    task=Generation(window=256, context=64),
    tokenizer=SentencePiece(vocab_size=4000),
    buckets=(96, 256),
    prompt_buckets=(16, 32),
    teacher=teacher,
    students=recipes.with_controls(student),
    comparison=recipes.COMPARISON,
    evaluation=Evaluation(texts=400),
)
