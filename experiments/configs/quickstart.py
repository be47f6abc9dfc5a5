"""English-French from a teacher that knows more than its students' references; ten minutes on two idle cores.

make quickstart

The teacher is trained on all 17,632 pairs of Debian synopses: it stands for one that is brought from elsewhere. A
student may learn from 2,000 of the references; of the other sentences it has the English alone. It has 12% of the
teacher's parameters outside the embeddings. The distilled student learns from the teacher's translations of all
sentences; its controls learn from the 2,000 references. Where all students have all references:
quickstart_references.py.
"""

from kd_jax import (
    Debian,
    Decoding,
    EncoderDecoder,
    Evaluation,
    Experiment,
    Optimizer,
    Recipe,
    SentencePiece,
    Smaller,
    Term,
    Training,
    Translation,
    cross_entropy,
    recipes,
)

teacher = Recipe(
    model=EncoderDecoder(encoder_layers=3, decoder_layers=3, d_model=128, heads=4, d_ff=512, dropout=0.0),
    terms={"ce": Term(cross_entropy, options={"label_smoothing": 0.1})},
    training=Training(
        steps=1500, tokens_per_batch=512, packed=True, eval_every=375, optimizer=Optimizer(learning_rate=3e-3)
    ),
)
small = Smaller(encoder_layers=2, decoder_layers=1, d_model=64, d_ff=256, heads=2)
student = recipes.distil(teacher, small, steps=1600, references=2000, beam=2)

experiment = Experiment(
    name="quickstart",
    source=Debian(config="en-fr", kinds=("synopsis",)),
    task=Translation(source="en", target="fr", decoding=Decoding(beam=1)),
    tokenizer=SentencePiece(vocab_size=4000),
    buckets=(16, 36),
    teacher=teacher,
    students=recipes.with_controls(student),
    comparison=recipes.COMPARISON,
    evaluation=Evaluation(draft=0),
)
