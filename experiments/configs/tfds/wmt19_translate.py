"""WMT 2019 German-English, with the models and students of wmt14_translate.py.

    python -m kd_jax run experiments/configs/tfds/wmt19_translate.py --workdir runs/wmt19_translate

The dataset has no test split; half of its validation split (newstest2018) is used for it.
"""

import dataclasses

from kd_jax import Tfds, Translation, load_experiment

experiment = dataclasses.replace(
    load_experiment(__file__.replace("wmt19", "wmt14")),
    name="wmt19_translate",
    source=Tfds(
        "wmt19_translate/de-en",
        fields={"de": "de", "en": "en"},
        validation="validation[:50%]",
        test="validation[50%:]",
        limit=2_000_000,
    ),
    task=Translation(source="de", target="en"),
)
