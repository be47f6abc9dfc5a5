"""English Wikipedia: articles in rows of 1,024 tokens, with the models and students of lm1b.py.

    python -m kd_jax run experiments/configs/tfds/wikipedia.py --workdir runs/wikipedia

Wikipedia must be prepared with Apache Beam: `tfds build --file_format=array_record`. Name the folder with
`--source.data-dir`. It has one split; 0.5% of the articles are held out for validation and for test each.
"""

import dataclasses

from kd_jax import Generation, Tfds, load_experiment

experiment = dataclasses.replace(
    load_experiment(__file__.replace("wikipedia", "lm1b")),
    name="wikipedia",
    source=Tfds("wikipedia/20230601.en", fields={"text": "text"}, held_out=0.005, limit=500_000),
    task=Generation(text="text", window=1024, context=256),
    buckets=(1024,),
)
