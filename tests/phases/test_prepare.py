"""What is refused as soon as the text is read, before anything is trained."""

import dataclasses

import pytest

from kd_jax.artifacts.workdir import Workdir
from kd_jax.data.pseudo_targets import PseudoTargets
from kd_jax.errors import KdError
from kd_jax.models.decoder_only import DecoderOnly
from kd_jax.phases import prepare
from tests.runs import smoke


def test_a_held_out_example_longer_than_a_models_context(root, tmp_path):
    """Held-out examples are taken whole, whatever the buckets."""
    experiment = smoke(root, ["--buckets", "8"])
    model = DecoderOnly(2, positions="learned", context=16)
    experiment = dataclasses.replace(experiment, students={"it": dataclasses.replace(experiment.teacher, model=model)})
    with pytest.raises(KdError, match="it: source: validation example '.*'... has [0-9]+ tokens.*wanted at most 16"):
        prepare.run(experiment, Workdir(tmp_path))
    assert not Workdir(tmp_path).data.finished()


@pytest.mark.parametrize("of", ["unlabelled", "both"])
def test_targets_of_unlabelled_text_that_the_source_lacks(root, tmp_path, of):
    experiment = smoke(root, [])
    student = dataclasses.replace(experiment.students["student_kd"], targets=PseudoTargets(of=of))
    with pytest.raises(KdError, match=f"it: targets.of: '{of}'; the source has no unlabelled text"):
        prepare.run(dataclasses.replace(experiment, students={"it": student}), Workdir(tmp_path))
