"""Summarization of Debian's package descriptions into their synopses, from a teacher that knows more than its students.

python -m kd_jax run experiments/configs/debian_summaries.py --workdir runs/debian_summaries

The teacher is trained on 20,000 synopses. A student may learn from 2,000 of them; of the other packages it has the
description alone. It has 27% of the teacher's parameters outside the embeddings. Where all students have all synopses:
pays_summaries.py.
"""

from kd_jax import (
    Debian,
    EncoderDecoder,
    Evaluation,
    Experiment,
    Optimizer,
    Recipe,
    SentencePiece,
    Smaller,
    Summarization,
    Term,
    Training,
    cross_entropy,
    recipes,
)

teacher = Recipe(
    model=EncoderDecoder(encoder_layers=3, decoder_layers=3, d_model=160, heads=4, d_ff=640, dropout=0.0),
    terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})},
    training=Training(
        steps=2000, tokens_per_batch=640, packed=True, eval_every=500, optimizer=Optimizer(learning_rate=2e-3)
    ),
)
small = Smaller(encoder_layers=2, decoder_layers=1, d_model=120, d_ff=480, heads=3)
student = recipes.distil(teacher, small, steps=1000, references=2000, beam=2)

experiment = Experiment(
    name="debian_summaries",
    source=Debian("summaries", limit=20_000),
    task=Summarization(document="description", summary="synopsis", document_tokens=127),
    tokenizer=SentencePiece(vocab_size=4000),
    buckets=(20, 40),
    prompt_buckets=(64, 128),
    teacher=teacher,
    students=recipes.with_controls(student),
    comparison=recipes.COMPARISON,
    evaluation=Evaluation(texts=1000),
)
