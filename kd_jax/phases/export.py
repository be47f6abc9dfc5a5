"""Export a trained model as a folder that works without kd_jax: for transformers, or for JAX alone."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import checkpoint, manifest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.decoding import loader
from kd_jax.decoding.exported import export_programs
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.models.huggingface.write import find_format, write_model
from kd_jax.models.int8 import Int8, quantize
from kd_jax.models.transformer import Transformer
from kd_jax.phases.generate import resolve_model_name
from kd_jax.reporting import page, tables, verdict
from kd_jax.reporting.report import read_report
from kd_jax.runtime import progress
from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers import base as tokenizers
from kd_jax.tokenizers.base import Tokenizer
from kd_jax.types import Params

FORMATS = ("transformers", "jax")
AUTO_CLASSES = {"encoder_decoder": "AutoModelForSeq2SeqLM", "decoder_only": "AutoModelForCausalLM"}
USAGE = {
    "transformers": """\
```python
from transformers import AutoTokenizer, {auto}

tokenizer, model = AutoTokenizer.from_pretrained("."), {auto}.from_pretrained(".")
ids = model.generate(**tokenizer([{example!r}], return_tensors="pt"))
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
```""",
    "jax": """\
```
python generate.py 5 17 9   # token ids of a prompt; it prints ids: the tokenizer in this folder encodes and decodes
```""",
}
INT8_NOTE = ", with int8 weights and a scale for each output channel; activations are not quantized"
CARD = """\
---
library_name: {library}
tags: [kd_jax, knowledge-distillation, {task}]
---

# {experiment}: {name}

`{name}` of the experiment {experiment}{of_teacher} trained with kd_jax on {dataset} ({count:,} training examples).
The digest of its parameters is {digest}; exported as {form}.

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
    """Write a model to a new folder, which appears when it is complete.

    Both formats have tokenizer.json (Marian: source.spm, target.spm, vocab.json), tokenizer_config.json and a model
    card, README.md. "transformers" adds config.json, model.safetensors and generation_config.json. "jax" adds
    prefill.bin and step.bin for CPU, CUDA and TPU, params.npz, settings.json, and generate.py, which needs JAX alone.

    Args:
      experiment: the experiment that the workdir was made with.
      workdir: a run with trained models.
      to: the folder to write; it must not exist.
      model: "teacher" or a student's name; "" for the distilled student.
      format: one of FORMATS.
      int8: whether to quantize the weights to 8 bits; with format "jax" alone.

    Raises:
      KdError: if there is no such model or format, `to` exists or is in a bucket, transformers has no architecture of
        this shape, or int8 is combined with "transformers" or qwix is not installed.
    """
    name = resolve_model_name(experiment, model)
    if format not in FORMATS:
        raise KdError(f"--format: expected {' or '.join(FORMATS)}, got {format}.")
    if int8 and format != "jax":
        raise KdError(
            f"--int8: expected --format jax beside it, got {format}. Leave it out: transformers quantizes a model "
            "when it loads it (from_pretrained(..., quantization_config=...))."
        )
    if os.fspath(to).startswith(("gs:", "s3:")):
        raise KdError(f"--to: expected a folder on a disk, got {to}. Export to a disk and copy the folder.")
    if to.exists():
        raise KdError(f"--to: expected a new folder, got {to}, which exists. Choose another or move it away.")
    folder, architecture = workdir.model(name), experiment.recipes[name].model
    tokenizer = tokenizers.load(experiment.tokenizer, folder)
    transformer = cast(Transformer, architecture)  # find_format refuses other architectures
    form = find_format(transformer).class_name if format == "transformers" else "programs of jax.export"
    params = checkpoint.load_params(folder, architecture.build(tokenizer.vocab_size).init)
    if int8:
        architecture, params, form = Int8(architecture), quantize(params), form + INT8_NOTE
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kd_jax_", dir=to.parent) as temporary:
        part = Path(temporary) / to.name
        part.mkdir()
        special_ids = tokenizer.export(part, architecture.family, experiment.task.prompted)
        if format == "transformers":
            write_transformers(part, experiment, transformer, params, tokenizer, special_ids)
        else:
            write_jax(part, experiment, architecture, params, tokenizer, eos=special_ids["eos_token_id"])
        card = model_card(experiment, workdir, name, form, format, int8)
        (part / "README.md").write_text(card, encoding="utf-8")
        os.replace(part, to)
    progress.print_result(f"{name}: exported to {to} as {form}")


def write_transformers(
    to: Path,
    experiment: ResolvedExperiment,
    architecture: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    special_ids: Mapping[str, int],
) -> None:
    """Write weights and settings for transformers; `special_ids` as config.json names them."""
    write_model(to, architecture, params, special_ids, tokenizer.vocab_size)
    settings = generation_config(experiment.task.decoding, max(experiment.prompt_widths))
    manifest.write_json(to / "generation_config.json", {**special_ids, **settings, **forced_token_settings(tokenizer)})


def write_jax(
    to: Path,
    experiment: ResolvedExperiment,
    architecture: Architecture,
    params: Params,
    tokenizer: Tokenizer,
    eos: int,
) -> None:
    """Write the programs, the parameters, and the file that runs them; `eos` is the id that ends a text."""
    prompt_length = max(experiment.prompt_widths)
    max_length = experiment.task.decoding.max_length(prompt_length)
    serialized = export_programs(
        architecture.build(tokenizer.vocab_size),
        params,
        has_encoder=architecture.family == "encoder_decoder",
        start=tokenizer.start,
        prompt_length=prompt_length,
        max_length=max_length,
        forced_prefix=tokenizer.forced_prefix,
        suppress_tokens=tokenizer.suppress_tokens,
    )
    for program, code in serialized.items():
        (to / f"{program}.bin").write_bytes(code)
    np.savez(to / "params.npz", *map(np.asarray, jax.tree.leaves(params)))
    settings = {"prompt_length": prompt_length, "max_length": max_length, "eos": eos}
    manifest.write_json(to / "settings.json", settings)
    shutil.copyfile(loader.__file__, to / "generate.py")


def generation_config(decoding: Decoding, max_prompt_length: int) -> dict[str, Any]:
    """Return transformers' settings of token-by-token decoding, for prompts of up to that many tokens.

    Examples:
      >>> generation_config(Decoding(length_ratio=1.0, length=8), max_prompt_length=32)
      {'max_new_tokens': 40, 'num_beams': 1, 'do_sample': False}
    """
    sampling = decoding.sampling
    settings: dict[str, Any] = {"max_new_tokens": decoding.max_length(max_prompt_length), "num_beams": 1}
    if sampling.repetition_penalty != 1:
        settings["repetition_penalty"] = sampling.repetition_penalty
    if not sampling.temperature:
        return settings | {"do_sample": False}
    settings |= {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
    return settings | ({"min_p": sampling.min_p} if sampling.min_p else {})


def forced_token_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return transformers' settings of the tokens that every text starts with, and that no text contains."""
    forced = {"forced_bos_token_id": tokenizer.forced_prefix[0]} if tokenizer.forced_prefix else {}
    return forced | ({"bad_words_ids": [[i] for i in tokenizer.suppress_tokens]} if tokenizer.suppress_tokens else {})


def model_card(experiment: ResolvedExperiment, workdir: Workdir, name: str, form: str, format: str, int8: bool) -> str:
    """Return the model card: description, use, figures, and how the model was made."""
    folder, data, task = workdir.model(name), workdir.data.outputs(), experiment.task
    versions = manifest.read_json(folder.path / "manifest.json")["versions"]
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
        options=f"--format {format}{' --int8' if int8 else ''}",
        use=USAGE[format].format(auto=AUTO_CLASSES[experiment.recipes[name].model.family], example=example),
        figures=summary_table(workdir),
        seed=experiment.seed,
        versions=", ".join(f"{library} {version}" for library, version in versions.items()),
        recipe="\n".join(f"{key} = {value}" for key, value in config.flatten(experiment.recipes[name], name).items()),
    )


def summary_table(workdir: Workdir) -> str:
    """Return the report's table; if there is no report, how to make one."""
    if not workdir.report.finished():
        return "None yet. `python -m kd_jax evaluate CONFIG --workdir DIR` measures them; then run `report`."
    report = read_report(workdir.report.file("report.json"))
    return "\n".join([verdict.lead(report), "", *page.Table(tables.summary(report)).markdown()])
