"""English-German package descriptions of Debian, synopses and paragraphs, with the quickstart's models.

python -m kd_jax run experiments/configs/debian_en_de.py --workdir runs/debian_en_de
"""

import dataclasses

from kd_jax import Debian, Translation, load_experiment

quickstart = load_experiment(__file__.replace("debian_en_de", "quickstart_references"))

experiment = dataclasses.replace(
    quickstart,
    name="debian_en_de",
    source=Debian("en-de", kinds=("synopsis", "paragraph"), max_characters=200),
    task=Translation(source="en", target="de"),
    buckets=(16, 32, 64),
)
