"""A trained model as a folder that needs no line of ours: for transformers, or for JAX alone."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import checkpoint, manifest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.decoding import loader
from kd_jax.decoding.exported import programs
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.models.huggingface.write import find_format, write
from kd_jax.models.int8 import Int8, quantize
from kd_jax.phases.generate import named
from kd_jax.reporting import page, tables, verdict
from kd_jax.runtime import progress
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers import base as tokenizers
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Params

Ids = Mapping[str, int]
AUTO = {"encoder_decoder": "AutoModelForSeq2SeqLM", "decoder_only": "AutoModelForCausalLM"}
USES = {
    "transformers": """\
```python
from transformers import AutoTokenizer, {auto}

tokenizer, model = AutoTokenizer.from_pretrained("."), {auto}.from_pretrained(".")
written = model.generate(**tokenizer([{example!r}], return_tensors="pt"))
print(tokenizer.batch_decode(written, skip_special_tokens=True))
```""",
    "jax": """\
```
python generate.py 5 17 9   # token ids of a prompt; the tokeniser here makes them, and texts of what is printed
```""",
}
IN_INT8 = ", which read every matrix in 8 bits with a scale for each output channel (weights alone)"
CARD = """\
---
library_name: {library}
tags: [kd_jax, knowledge-distillation, {task}]
---

# {experiment}: {name}

`{name}` of the experiment {experiment}{of_teacher} trained with kd_jax on {dataset} ({count:,} training examples).
The digest of its parameters is {digest}; written as {form}.

{use}

## Figures

{figures}

## How it was made

`python -m kd_jax run CONFIG --workdir DIR`, then
`python -m kd_jax export --workdir DIR --model {name} --to FOLDER {options}`; seed {seed}; {versions}.

```
{recipe}
```
"""


def run(
    experiment: ResolvedExperiment,
    workdir: Workdir,
    to: Path,
    model: str = "",
    format: str = "transformers",
    int8: bool = False,
) -> None:
    """Writes the folder `to`, by rename.

    As "transformers": config.json, model.safetensors, generation_config.json. As "jax": prefill.bin and step.bin for
    CPU, CUDA and TPU, params.npz, settings.json, and generate.py, which runs them with JAX and NumPy alone. Either way
    tokenizer.json (Marian: source.spm, target.spm, vocab.json), tokenizer_config.json and a model card, README.md.

    Args:
      experiment: as the workdir keeps it.
      workdir: of a run with trained models.
      to: a folder that is not there yet.
      model: "teacher" or a student's name; "" for the distilled student.
      format: one of FORMATS.
      int8: whether the programs read matrices in 8 bits; as "jax" alone.

    Raises:
      KdError: if there is no such model or format, `to` is there, transformers has no architecture of this shape, or
        int8 is asked for as "transformers" or without qwix.
    """
    name = named(experiment, model)
    if format not in FORMATS:
        raise KdError(f"--format {format}: unknown; wanted {' or '.join(FORMATS)}")
    if int8 and format != "jax":
        raise KdError(
            f"--int8: goes with --format jax alone, not {format}; leave it out: transformers quantises for itself when "
            "it loads a model (from_pretrained(..., quantization_config=...))"
        )
    if to.exists():
        raise KdError(f"--to {to}: is there already; take another, or move it away")
    folder, architecture = workdir.model(name), experiment.recipes[name].model
    tokenizer = tokenizers.load(experiment.tokenizer, folder)
    options = f"--format {format}{' --int8' if int8 else ''}"
    form = find_format(architecture).class_name if format == "transformers" else "programs of jax.export"
    params = checkpoint.load_params(folder, architecture.build(tokenizer.vocab_size).init)
    if int8:
        architecture, params, form = Int8(architecture), quantize(params), form + IN_INT8
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kd_jax_", dir=to.parent) as beside:
        part = Path(beside) / to.name
        part.mkdir()
        ids = tokenizer.export(part, architecture.family, experiment.task.prompted)
        FORMATS[format](part, experiment, architecture, params, tokenizer, ids)
        (part / "README.md").write_text(card(experiment, workdir, name, form, format, options), encoding="utf-8")
        os.replace(part, to)
    progress.print_result(f"{name}: {to}, as {form}")


def for_transformers(
    to: Path, experiment: ResolvedExperiment, architecture: Architecture, params: Params, tokenizer: Tokenizer, ids: Ids
) -> None:
    """Weights and settings."""
    write(to, architecture, params, ids, tokenizer.vocab_size)
    settings = generation(experiment.task.decoding, max(experiment.prompt_widths))
    manifest.write_json(to / "generation_config.json", {**ids, **settings, **forced_token_settings(tokenizer)})


def for_jax(
    to: Path, experiment: ResolvedExperiment, architecture: Architecture, params: Params, tokenizer: Tokenizer, ids: Ids
) -> None:
    """Programs, parameters, and the file that runs them."""
    width = max(experiment.prompt_widths)
    sizes = {"width": width, "room": experiment.task.decoding.most(width)}
    has_encoder = architecture.family == "encoder_decoder"
    network = architecture.build(tokenizer.vocab_size)
    begins = {"start": tokenizer.start, "forced_prefix": tokenizer.forced_prefix, "suppress_tokens": tokenizer.suppress_tokens}
    written = programs(network, params, has_encoder=has_encoder, **begins, **sizes)
    for program, code in written.items():
        (to / f"{program}.bin").write_bytes(code)
    np.savez(to / "params.npz", *map(np.asarray, jax.tree.leaves(params)))
    manifest.write_json(to / "settings.json", {**sizes, "eos": ids["eos_token_id"]})
    shutil.copyfile(loader.__file__, to / "generate.py")


FORMATS = {"transformers": for_transformers, "jax": for_jax}


def generation(decoding: Decoding, widest: int) -> dict[str, Any]:
    """How texts are written token by token, in transformers' words; for prompts of up to `widest` tokens.

    Examples:
      >>> generation(Decoding(length_ratio=1.0, length=8), widest=32)
      {'max_new_tokens': 40, 'num_beams': 1, 'do_sample': False}
    """
    sampling, settings = decoding.sampling, {"max_new_tokens": decoding.most(widest), "num_beams": 1}
    if sampling.repetition_penalty != 1:
        settings["repetition_penalty"] = sampling.repetition_penalty
    if not sampling.temperature:
        return settings | {"do_sample": False}
    drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return settings | {"do_sample": True} | drawn | ({"min_p": sampling.min_p} if sampling.min_p else {})


def forced_token_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """What is given to every text and what none holds, in transformers' words."""
    first = {"forced_bos_token_id": tokenizer.forced_prefix[0]} if tokenizer.forced_prefix else {}
    return first | ({"bad_words_ids": [[i] for i in tokenizer.suppress_tokens]} if tokenizer.suppress_tokens else {})


def card(experiment: ResolvedExperiment, workdir: Workdir, name: str, form: str, format: str, options: str) -> str:
    """The model card: what it is, how it came to be, how good it is, how it is used."""
    folder, data, task = workdir.model(name), workdir.data.outputs(), experiment.task
    written_by = manifest.read_json(folder.path / "manifest.json")["versions"]
    example = task.prompt(manifest.read_lines(workdir.data.file("validation.jsonl"))[0])[:60]
    of_teacher = "" if name == TEACHER else f", a student of the teacher {workdir.model(TEACHER).outputs()['digest']},"
    return CARD.format(
        task=task.name,
        name=name,
        experiment=experiment.name,
        of_teacher=of_teacher,
        dataset=data["dataset"],
        count=data["counts"]["train"],
        digest=folder.outputs()["digest"],
        form=form,
        library=format,
        options=options,
        use=USES[format].format(auto=AUTO[experiment.recipes[name].model.family], example=example),
        figures=figures(workdir),
        seed=experiment.seed,
        versions=", ".join(f"{library} {version}" for library, version in written_by.items()),
        recipe="\n".join(f"{key} = {value}" for key, value in config.flatten(experiment.recipes[name], name).items()),
    )


def figures(workdir: Workdir) -> str:
    """The report's table, or that there is none yet."""
    if not workdir.report.finished():
        return "None were measured: `python -m kd_jax evaluate CONFIG --workdir DIR`, then `report`, measures them."
    report = manifest.read_json(workdir.report.file("report.json"))
    return "\n".join([verdict.lead(report), "", *page.Table(tables.summary(report)).markdown()])
