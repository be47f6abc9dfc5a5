"""A trained model as a folder that transformers loads without a line of ours: weights, tokeniser, settings, card."""

import os
import shutil
from pathlib import Path
from typing import Any

from kd_jax import config
from kd_jax.artifacts import checkpoint, manifest, runlog
from kd_jax.artifacts.workdir import TEACHER, Workdir
from kd_jax.data.tokenizer_json import tokenizer_json
from kd_jax.data.tokenizers import EOS, PAD, START, UNKNOWN, Tokenizer
from kd_jax.errors import KdError
from kd_jax.evaluation import page, tables, verdict
from kd_jax.experiment import Experiment
from kd_jax.models.huggingface.write import format_of, write
from kd_jax.phases.generate import named
from kd_jax.tasks.base import Decoding

IDS = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": EOS}
ENDLESS = int(1e30)  # transformers' word for a tokeniser that cuts nothing
AUTO = {"encoder_decoder": "AutoModelForSeq2SeqLM", "decoder_only": "AutoModelForCausalLM"}
CARD = """\
---
library_name: transformers
tags: [kd_jax, knowledge-distillation, {task}]
---

# {experiment}: {name}

`{name}` of the experiment {experiment}{of_teacher} trained with kd_jax on {dataset} ({count:,} training examples).
The digest of its parameters is {digest}; written as {class_name}.

```python
from transformers import AutoTokenizer, {auto}

tokenizer, model = AutoTokenizer.from_pretrained("."), {auto}.from_pretrained(".")
written = model.generate(**tokenizer([{example!r}], return_tensors="pt"))
print(tokenizer.batch_decode(written, skip_special_tokens=True))
```

## Figures

{figures}

## How it was made

`python -m kd_jax run CONFIG --workdir DIR`, then `python -m kd_jax export --workdir DIR --model {name} --to FOLDER`;
seed {seed}; {versions}.

```
{recipe}
```
"""


def run(experiment: Experiment, workdir: Workdir, to: Path, model: str = "") -> None:
    """Writes the folder `to`, by rename: config.json, model.safetensors, tokenizer.json and the like, README.md.

    Args:
      experiment: as the workdir keeps it.
      workdir: of a run with trained models.
      to: a folder that is not there yet.
      model: "teacher" or a student's name; "" for the distilled student.

    Raises:
      KdError: if there is no such model, `to` is there, or transformers has no architecture of this shape.
    """
    name = named(experiment, model)
    if to.exists():
        raise KdError(f"--to {to}: is there already; take another, or move it away")
    folder, architecture = workdir.model(name), experiment.recipes[name].model
    tokenizer = Tokenizer(folder.file("tokenizer.model"))
    network = architecture.build(tokenizer.vocab_size)
    kept = format_of(architecture)
    params = checkpoint.load_params(folder, network.init)
    part = to.with_name(to.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    start = {"decoder_start_token_id": START} if architecture.family == "encoder_decoder" else {}
    write(part, architecture, params, IDS | start, tokenizer.vocab_size)
    write_tokenizer(part, experiment, name, folder.file("tokenizer.model"))
    widest = max(experiment.prompt_widths)
    manifest.write_json(part / "generation_config.json", IDS | start | generation(experiment.task.decoding, widest))
    (part / "README.md").write_text(card(experiment, workdir, name, kept.class_name), encoding="utf-8")
    os.replace(part, to)
    runlog.show(f"{name}: {to}, as {kept.class_name} of transformers")


def write_tokenizer(to: Path, experiment: Experiment, name: str, model: Path) -> None:
    """tokenizer.json and tokenizer_config.json, which give the ids of `model` as the task encodes a prompt."""
    if experiment.recipes[name].model.family == "encoder_decoder":
        template = "$A </s>"
    else:
        template = "<s> $A </s>" if experiment.task.prompted else "<s> $A"
    tokenizer = tokenizer_json(model, template)
    tokenizer.save(str(to / "tokenizer.json"))
    words = {"pad_token": PAD, "bos_token": START, "eos_token": EOS, "unk_token": UNKNOWN}
    settings = {name: tokenizer.id_to_token(token) for name, token in words.items()}
    side = {"padding_side": "left"} if template.startswith("<s>") else {}
    general = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    inputs = {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": ENDLESS}
    manifest.write_json(to / "tokenizer_config.json", general | settings | side | inputs)


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


def card(experiment: Experiment, workdir: Workdir, name: str, class_name: str) -> str:
    """The model card: what it is, how it came to be, how good it is, how it is used."""
    folder, data, task = workdir.model(name), workdir.data.outputs(), experiment.task
    written_by = manifest.read_json(folder.path / "manifest.json")["versions"]
    auto = AUTO[experiment.recipes[name].model.family]
    of_teacher = "" if name == TEACHER else f", a student of the teacher {workdir.model(TEACHER).outputs()['digest']},"
    return CARD.format(
        task=task.name,
        name=name,
        experiment=experiment.name,
        of_teacher=of_teacher,
        dataset=data["dataset"],
        count=data["counts"]["train"],
        digest=folder.outputs()["digest"],
        class_name=class_name,
        auto=auto,
        example=task.prompt(manifest.read_lines(workdir.data.file("validation.jsonl"))[0])[:60],
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
