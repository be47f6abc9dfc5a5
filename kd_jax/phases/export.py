"""Export a trained model as a folder that works without kd_jax: for transformers, or for JAX alone."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from kd_jax import config
from kd_jax.artifacts import checkpoint, manifest
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.decoding import loader
from kd_jax.decoding.exported import export_programs
from kd_jax.decoding.rules import NO_RULES
from kd_jax.decoding.text import TextTokens
from kd_jax.errors import KdError
from kd_jax.experiment import ResolvedExperiment
from kd_jax.models.base import Architecture
from kd_jax.models.huggingface.write import find_format, write_model
from kd_jax.models.int8 import Int8, quantize
from kd_jax.models.transformer import Transformer
from kd_jax.phases.generate import resolve_model_name
from kd_jax.phases.report import report_inputs
from kd_jax.printable import printable
from kd_jax.provenance import check_model
from kd_jax.reporting import page, tables, usage, verdict
from kd_jax.reporting.report import read_report
from kd_jax.runtime import progress
from kd_jax.tasks.base import Decoding, Task
from kd_jax.tasks.summarization import Summarization
from kd_jax.tokenizers import base as tokenizers
from kd_jax.tokenizers.base import PromptFormat, Tokenizer
from kd_jax.tokenizers.marian import LoadedMarian
from kd_jax.types import Params

FORMATS = ("transformers", "jax")
INT8_NOTE = ", with int8 weights and a scale for each output channel; activations are not quantized"
CARD = """\
---
library_name: {library}
tags: [kd_jax, knowledge-distillation, {task}]
---

# {experiment}: {name}

The model {name} of the experiment {experiment}{of_teacher} trained with kd_jax on {dataset}
({count:,} training examples{share}).
The digest of its parameters is {digest}; exported as {form}.

{use}

{texts}

## Figures

{figures}

## How it was made

`python -m kd_jax run CONFIG --workdir DIR`, then
{export}; seed {seed}; {versions}.

{recipe}
"""
OWN_WORDING = "The task words its prompts itself, in Python ({0}): this code does not give its prompts."


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
    transformer = cast(Transformer, architecture)  # find_format refuses other architectures
    form = find_format(transformer).class_name if format == "transformers" else "programs of jax.export"
    check_model(experiment, workdir, name)
    tokenizer = tokenizers.load(experiment.tokenizer, folder)
    params = checkpoint.load_params(folder, architecture.build(tokenizer.vocab_size).init)
    if int8:
        architecture, params, form = Int8(architecture), quantize(params), form + INT8_NOTE
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kd_jax_", dir=to.parent) as temporary:
        part = Path(temporary) / to.name
        part.mkdir()
        special_ids = tokenizer.export(part, architecture.family, experiment.task.prompted)
        use = usage_code(experiment, tokenizer, transformer, format, prompts_of(workdir, experiment.task))
        if format == "transformers":
            write_transformers(part, experiment, transformer, params, tokenizer, special_ids)
        else:
            write_jax(part, experiment, architecture, params, tokenizer)
        card = model_card(experiment, workdir, name, form, format, int8, use)
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
    for key in {"max_new_tokens", "min_new_tokens"} & set(settings):
        settings[key] += len(tokenizer.forced_prefix)  # which count as new in transformers
    manifest.write_json(to / "generation_config.json", {**special_ids, **settings, **forced_token_settings(tokenizer)})


def write_jax(
    to: Path,
    experiment: ResolvedExperiment,
    architecture: Architecture,
    params: Params,
    tokenizer: Tokenizer,
) -> None:
    """Write the programs, the parameters, and the file that runs them."""
    prompt_length = max(experiment.prompt_widths)
    max_length = experiment.task.decoding.max_length(prompt_length)
    rules = dataclasses.asdict(TextTokens.of(tokenizer)._replace(force_end=False).rules(experiment.task.decoding))
    if changed := [name for name, value in dataclasses.asdict(NO_RULES).items() if rules[name] != value]:
        raise KdError(
            f"--format: expected transformers for texts with {', '.join(changed)}, got jax, whose programs write the "
            "most probable tokens. Leave the settings of task.decoding out, or export for transformers."
        )
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
    # A forced end is no part of the text, so that the text is a token shorter.
    max_length -= tokenizer.force_end
    settings: dict[str, Any] = {"prompt_length": prompt_length, "max_length": max_length, "ends": list(tokenizer.ends)}
    if architecture.family == "decoder_only":
        settings["start"] = tokenizer.start  # the tokenizer's prompts begin with it, and so do the programs
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
    rules = {
        "min_new_tokens": decoding.min_length,
        "no_repeat_ngram_size": decoding.no_repeat_ngram,
        "encoder_no_repeat_ngram_size": decoding.no_source_ngram,
    }
    settings |= {key: value for key, value in rules.items() if value}
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
    """Return transformers' settings of the tokens that texts start and end with, and that no text contains."""
    if len(tokenizer.forced_prefix) > 1:
        raise KdError(
            f"--format: expected jax for texts that begin with {len(tokenizer.forced_prefix)} forced tokens, got "
            "transformers, which forces one."
        )
    forced = {"forced_bos_token_id": tokenizer.forced_prefix[0]} if tokenizer.forced_prefix else {}
    ids: dict[str, Any] = {
        "bad_words_ids": [[i] for i in tokenizer.suppress_tokens],
        "begin_suppress_tokens": list(tokenizer.suppress_first),
        "eos_token_id": list(tokenizer.ends) if len(tokenizer.ends) > 1 else [],
    }
    if tokenizer.force_end:
        forced["forced_eos_token_id"] = tokenizer.eos
    return forced | {key: value for key, value in ids.items() if value}


def prompts_of(workdir: Workdir, task: Task) -> list[str]:
    """Return the first prompts of the validation split that are not empty."""
    examples = manifest.read_lines(workdir.data.file("validation.jsonl"))[:64]
    return [prompt for example in examples if (prompt := task.prompt(example)).strip()][:8] or ["a"]


def usage_code(
    experiment: ResolvedExperiment, tokenizer: Tokenizer, architecture: Transformer, format: str, prompts: Sequence[str]
) -> str:
    """Return the model card's code blocks: code that gives the texts of `generate`, for the first of some prompts."""
    task, prompt_format = experiment.task, tokenizer.prompt_format if experiment.task.prompted else PromptFormat()
    max_tokens = task.document_tokens if isinstance(task, Summarization) else 0
    encoded = [
        tokenizer.encode_prompt(text, max_tokens) if task.prompted else tokenizer.encode(text) for text in prompts
    ]
    own = any(list(task.encode_prompt(text, tokenizer)) != ids for text, ids in zip(prompts, encoded, strict=True))
    special_tokens = max(len(tokenizer.encode_prompt(text, 1)) for text in prompts) - 1
    if prompt_format.chat:
        special_tokens = len(tokenizer.encode(prompt_format.prefix.rstrip()))
    elif architecture.family == "decoder_only":
        special_tokens += 1  # the start token
    example, note = (
        prompts[0][:60],
        [OWN_WORDING.format(page.code_span(one_line(type(task).__qualname__)))] if own else [],
    )
    options = {"example": example, "max_tokens": max_tokens, "special_tokens": special_tokens}
    if format == "transformers":
        code = usage.transformers_code(
            architecture.family, find_format(architecture).model_type, prompt_format, **options
        )
        return "\n\n".join([*note, page.code_block(code, "python")])
    with_json = not isinstance(tokenizer, LoadedMarian)  # whose pieces are those of two SentencePiece models
    code = [page.code_block(usage.jax_code(prompt_format, **options), "python")] if with_json else []
    return "\n\n".join([*note, page.code_block(usage.IDS_CODE), *code])


def model_card(
    experiment: ResolvedExperiment, workdir: Workdir, name: str, form: str, format: str, int8: bool, use: str
) -> str:
    """Return the model card: description, use, figures, and how the model was made. Names are escaped."""
    folder, data, task = workdir.model(name), workdir.data.outputs(), experiment.task
    versions = manifest.read_json(folder.path / "manifest.json")["versions"]
    of_teacher = "" if name == TEACHER else f", a student of the teacher {workdir.model(TEACHER).outputs()['digest']},"
    command = f"python -m kd_jax export --workdir DIR --model {name} --to FOLDER --format {format}"
    recipe, references = config.flatten(experiment.recipes[name], name).items(), experiment.recipes[name].references
    return CARD.format(
        task=json.dumps(printable(task.name)),  # a string of JSON is one of YAML
        name=escape(name),
        experiment=escape(experiment.name),
        of_teacher=of_teacher,
        dataset=escape(data["dataset"]),
        count=data["counts"]["train"],
        share=f", {references:,} of them with a reference for it" if references else "",
        digest=folder.outputs()["digest"],
        form=form,
        library=format,
        export=page.code_span(one_line(f"{command} --int8" if int8 else command)),
        use=use,
        texts=usage.describe_decoding(task.decoding, max(experiment.prompt_widths)),
        figures=summary_table(experiment, workdir),
        seed=experiment.seed,
        versions=escape(", ".join(f"{library} {version}" for library, version in versions.items())),
        recipe=page.code_block("\n".join(one_line(f"{key} = {value}") for key, value in recipe)),
    )


def escape(text: str) -> str:
    """Return a text of one line that Markdown shows literally, without control characters."""
    return page.escape_markdown(printable(text))


def one_line(text: str) -> str:
    r"""Return a text as one line of code, with escapes for control characters and line ends.

    Examples:
      >>> one_line("a\nb")
      'a\\nb'
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def summary_table(experiment: ResolvedExperiment, workdir: Workdir) -> str:
    """Return the report's table; how to make one, if there is none of the models as they are now."""
    missing = "None yet. `python -m kd_jax evaluate CONFIG --workdir DIR` measures them; then run `report`."
    if not workdir.report.finished():
        return missing
    try:
        workdir.report.check_inputs(report_inputs(experiment, workdir))
    except KdError as error:
        progress.log(f"model card: no figures, since the report is out of date: {error}")
        return missing
    report = read_report(workdir.report.file("report.json"))
    return "\n".join([escape(verdict.lead(report)), "", *page.Table(tables.summary(report)).markdown()])
