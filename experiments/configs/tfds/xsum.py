"""XSum: one-sentence summaries of BBC articles of up to 500 tokens, with the models and students of cnn_dailymail.py.

    python -m kd_jax run experiments/configs/tfds/xsum.py --workdir runs/xsum

The files must be downloaded by hand; an error message says from where and to which folder.
"""

import dataclasses

from kd_jax import Decoding, Summarization, Tfds, load_experiment

experiment = dataclasses.replace(
    load_experiment(__file__.replace("xsum", "cnn_dailymail")),
    name="xsum",
    source=Tfds("xsum", fields={"document": "document", "summary": "summary"}),
    task=Summarization(document_tokens=500, decoding=Decoding(beam=4, length_ratio=0.0, length=48)),
    buckets=(32, 64),
    prompt_buckets=(256, 512),
)
