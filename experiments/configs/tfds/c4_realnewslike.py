"""C4, news articles: documents in rows of 1,024 tokens, with the models and students of lm1b.py.

    python -m kd_jax run experiments/configs/tfds/c4_realnewslike.py --workdir runs/c4_realnewslike

C4 must be prepared with Apache Beam on a cluster: `tfds build --file_format=array_record`. Name the folder with
`--source.data-dir`. `source.limit` keeps 500,000 of the 13.8 million documents.
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
