"""C4, its news: documents in rows of 1,024 tokens, with the models and students of lm1b.py.

    python -m kd_jax run experiments/configs/tfds/c4_realnewslike.py --workdir runs/c4_realnewslike

Preparing C4 takes Apache Beam and a cluster: prepare it there, with `tfds build --file_format=array_record`, and name
the folder with `--source.data-dir`. `source.limit` keeps of its 13.8 million documents those that fit into memory.
"""

import dataclasses

from kd_jax import Generation, Tfds, load_experiment

experiment = dataclasses.replace(
    load_experiment(__file__.replace("c4_realnewslike", "lm1b")),
    name="c4_realnewslike",
    source=Tfds(
        "c4/realnewslike",
        fields={"text": "text"},
        validation="validation[:50%]",
        test="validation[50%:]",
        limit=500_000,
    ),
    task=Generation(text="text", window=1024, context=256),
    buckets=(1024,),
)
