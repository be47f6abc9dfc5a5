"""Compare every architecture with transformers: largest difference of logits, and equality of greedy texts.

    python experiments/benchmarks/parity.py --json parity.json

transformers saves the small random models of tests/models/huggingface, and kd_jax reads them; then kd_jax writes them,
and transformers reads these files. All in float32. It needs torch and transformers. The tests require differences below
1e-4 and 1e-5.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.decoding.greedy import greedy
from kd_jax.models.huggingface.read import read_model
from kd_jax.models.huggingface.write import write_model


def measure(name: str, scratch: Path) -> dict[str, object]:
    """Return the row of one architecture."""
    from tests.models.huggingface import cases, test_parity  # imports torch

    network = cases.save_random(name, scratch / "theirs")
    model, params = read_model(scratch / "theirs")
    params, built, difference = jax.tree.map(jnp.asarray, params), model.build(cases.V), 0.0
    for left in (False, True):
        decoder, encoder = test_parity.examples(model, left)
        ours_BTV = built.head(params).logits(built.apply(params, test_parity.inputs_of(decoder, encoder), None))
        theirs_BTV = test_parity.logits_of(network, decoder, encoder)
        difference = max(difference, float(np.abs(np.asarray(ours_BTV) - theirs_BTV)[decoder[1]].max()))
    arguments, inputs = test_parity.prompts(network, model)
    ids_BT = greedy(built, params, inputs, eos=test_parity.END, length=test_parity.MAX_TOKENS)
    their_ids = network.generate(**arguments, **test_parity.SETTINGS).sequences
    theirs = [test_parity.until_end(ids_T) for ids_T in test_parity.new_tokens(their_ids, arguments, model)]
    same = [test_parity.until_end(ids_T) for ids_T in np.asarray(ids_BT).tolist()] == theirs
    special = {key: value for key, value in network.config.to_dict().items() if key.endswith("token_id")}
    (scratch / "ours").mkdir()
    write_model(scratch / "ours", model, params, special, cases.V)
    reread_BTV = test_parity.logits_of(type(network).from_pretrained(scratch / "ours").eval(), decoder, encoder)
    reread_difference = float(np.abs(reread_BTV - theirs_BTV)[decoder[1]].max())
    row = {"architecture": name, "class": type(network).__name__, "apart": difference}
    return row | {"same_texts": same, "back": reread_difference}


def main() -> None:
    """Print a table, and write the rows to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    from tests.models.huggingface.cases import MODELS

    rows = []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as path:
            rows.append(measure(name, Path(path)))
        row = rows[-1]
        texts = "equal" if row["same_texts"] else "different"
        print(f"| {name} ({row['class']}) | {row['apart']:.1e} | {texts} | {row['back']:.1e} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
