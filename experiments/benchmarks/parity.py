"""Every architecture against transformers: how far the logits are apart, and whether greedy texts are the same.

    python experiments/benchmarks/parity.py --json parity.json

The small random models of tests/models/huggingface, saved by transformers and read by us, float32; and our files of
them read by transformers. Needs torch and transformers; the tests hold these figures to 1e-4 and 1e-5.
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
    """The row of one architecture."""
    from tests.models.huggingface import cases, test_parity  # torch's, which the other benchmarks do without

    network = cases.save_random(name, scratch / "theirs")
    model, params = read_model(scratch / "theirs")
    params, built, apart = jax.tree.map(jnp.asarray, params), model.build(cases.V), 0.0
    for left in (False, True):
        decoder, encoder = test_parity.examples(model, left)
        ours_BTV = built.head(params).logits(built.apply(params, test_parity.inputs_of(decoder, encoder), None))
        theirs_BTV = test_parity.logits_of(network, decoder, encoder)
        apart = max(apart, float(np.abs(np.asarray(ours_BTV) - theirs_BTV)[decoder[1]].max()))
    given, inputs = test_parity.prompts(network, model)
    ids_BT = greedy(built, params, inputs, eos=test_parity.END, length=test_parity.MAX_TOKENS)
    written = test_parity.new_tokens(network.generate(**given, **test_parity.SETTINGS).sequences, given, model)
    ended = test_parity.until_end
    same = [ended(ids_T) for ids_T in np.asarray(ids_BT).tolist()] == [ended(ids_T) for ids_T in written]
    special = {key: value for key, value in network.config.to_dict().items() if key.endswith("token_id")}
    (scratch / "ours").mkdir()
    write_model(scratch / "ours", model, params, special, cases.V)
    again = test_parity.logits_of(type(network).from_pretrained(scratch / "ours").eval(), decoder, encoder)
    back = float(np.abs(again - theirs_BTV)[decoder[1]].max())
    return {"architecture": name, "class": type(network).__name__, "apart": apart, "same_texts": same, "back": back}


def main() -> None:
    """Prints the table; writes it to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    arguments = parser.parse_args()
    from tests.models.huggingface.cases import MODELS

    rows = []
    for name in MODELS:
        with tempfile.TemporaryDirectory() as path:
            rows.append(measure(name, Path(path)))
        row = rows[-1]
        texts = "the same" if row["same_texts"] else "NOT the same"
        print(f"| {name} ({row['class']}) | {row['apart']:.1e} | {texts} | {row['back']:.1e} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
