"""One library that writes texts from the same weights, in a process of its own, which decode.py starts and asks.

A side is a class of (folder, job): `write(prompts, beam)` returns the token ids that follow each prompt, the best
hypothesis where `beam` is more than 1. It takes what it needs from its library when it is built, so that a process
holds one library and its threads alone.
"""

import functools
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Prompts = Sequence[Sequence[int]]
Job = dict[str, Any]  # as decode.py writes it
BOTH = ("encoder_decoder", "decoder_only")


class KdJax:
    """Our model, read from the folder that the others read."""

    families, beams = BOTH, True

    def __init__(self, folder: Path, job: Job):
        sys.path.insert(0, str(Path(__file__).parents[3]))
        import jax

        from kd_jax.decoding.beam import beam_search
        from kd_jax.decoding.greedy import greedy
        from kd_jax.models.huggingface.read import read_model

        architecture, params = read_model(folder)
        model, ends = architecture.build(job["vocab_size"]), {"eos": job["eos"], "length": job["length"]}
        self.layout, self.params = architecture.layout(job["start"]), jax.device_put(params)
        self.begun = job["family"] == "decoder_only"  # then prompts have the start token, which the layout adds
        self.greedy = jax.jit(functools.partial(greedy, model, **ends))
        search = functools.partial(beam_search, model, alpha=0.0, best=1, **ends)
        first = lambda params, inputs, beam: search(params, inputs, beam=beam).ids_BKT[:, 0]  # noqa: E731
        self.beam = jax.jit(first, static_argnames="beam")

    def write(self, prompts: Prompts, beam: int) -> list[list[int]]:
        rows = [np.asarray(prompt[self.begun :], np.int32) for prompt in prompts]
        width = -(-max(map(len, rows)) // 8) * 8  # a few widths, one compilation each
        inputs = self.layout.prompts(rows, len(rows), width)
        return np.asarray(
            self.beam(self.params, inputs, beam) if beam > 1 else self.greedy(self.params, inputs)
        ).tolist()


class Transformers:
    """`generate`, with settings of its own and not the folder's."""

    families, beams = BOTH, True

    def __init__(self, folder: Path, job: Job):
        import torch
        import transformers

        torch.set_num_threads(job["threads"])
        self.torch, self.pad, self.seq2seq = torch, job["pad"], job["family"] == "encoder_decoder"
        auto = transformers.AutoModelForSeq2SeqLM if self.seq2seq else transformers.AutoModelForCausalLM
        self.model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        ids = {"pad_token_id": job["pad"], "eos_token_id": job["eos"], "decoder_start_token_id": job["start"]}
        self.model.generation_config = transformers.GenerationConfig(max_new_tokens=job["length"], **ids)

    def write(self, prompts: Prompts, beam: int) -> list[list[int]]:
        longest, rows, real = max(map(len, prompts)), [], []
        for prompt in prompts:  # padded on the right for an encoder, on the left of what goes on
            before, behind = (0, longest - len(prompt)) if self.seq2seq else (longest - len(prompt), 0)
            rows.append([self.pad] * before + list(prompt) + [self.pad] * behind)
            real.append([0] * before + [1] * len(prompt) + [0] * behind)
        written = self.model.generate(
            input_ids=self.torch.tensor(rows),
            attention_mask=self.torch.tensor(real),
            num_beams=beam,
            do_sample=False,
            **({"length_penalty": 0.0, "early_stopping": False} if beam > 1 else {}),
        )
        return written[:, 1 if self.seq2seq else longest :].tolist()


class CTranslate2:
    """Its converter's model, in one of its types."""

    families, beams, quantization = BOTH, True, "float32"

    def __init__(self, folder: Path, job: Job):
        import ctranslate2

        converted = folder / f"ctranslate2_{self.quantization}"
        if not converted.exists():
            converter = ctranslate2.converters.TransformersConverter(str(folder))
            converter.convert(str(converted), quantization=self.quantization)
        threads = {"intra_threads": job["threads"], "inter_threads": 1, "compute_type": self.quantization}
        self.words = words_of(folder)
        self.ids = {word: i for i, word in enumerate(self.words)}
        if job["family"] == "encoder_decoder":
            translator = ctranslate2.Translator(str(converted), **threads)
            self.translate = functools.partial(translator.translate_batch, max_decoding_length=job["length"])
            self.best = lambda result: result.hypotheses[0]
        else:
            generator = ctranslate2.Generator(str(converted), **threads)
            after = {"include_prompt_in_result": False, "max_length": job["length"]}
            self.translate = functools.partial(generator.generate_batch, **after)
            self.best = lambda result: result.sequences[0]

    def write(self, prompts: Prompts, beam: int) -> list[list[int]]:
        words = [[self.words[i] for i in prompt] for prompt in prompts]
        results = self.translate(words, beam_size=beam, length_penalty=0, return_end_token=True)
        return [[self.ids[word] for word in self.best(result)] for result in results]


class CTranslate2Int8(CTranslate2):
    """Weights and activations of the matrix products in 8 bits."""

    quantization = "int8"


def words_of(folder: Path) -> list[str]:
    """The token of every id."""
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    # A list of (token, score) in a unigram model, else token to id.
    return [word for word, _ in (vocab if isinstance(vocab, list) else sorted(vocab.items(), key=lambda item: item[1]))]


class LlamaCpp:
    """A Llama as GGUF, in the server of llama.cpp within this process: a slot for every text of a batch."""

    families, beams = ("decoder_only",), False

    def __init__(self, folder: Path, job: Job):
        import gguf_file  # beside this file
        import xllamacpp

        path = folder / "model.gguf"
        if not path.exists():
            # Ids for words: the server answers with text, and has no id's text to guess.
            gguf_file.write(path, folder, [f"<{i}>" for i in range(job["vocab_size"])], job)
        self.job, self.xllamacpp, self.path = job, xllamacpp, path
        self.longest = max(len(prompt) for case in job["cases"].values() for one in case["batches"] for prompt in one)
        self.servers: dict[int, Any] = {}

    def write(self, prompts: Prompts, beam: int) -> list[list[int]]:
        length = self.job["length"]
        request = {"prompt": [list(prompt) for prompt in prompts], "n_predict": length, "cache_prompt": False}
        request |= {"samplers": ["top_k"], "top_k": 1}
        answer = self.server(len(prompts)).handle_completions(request)
        answers = answer if isinstance(answer, list) else [answer]
        texts = [choice["text"] for one in answers for choice in one["choices"]]
        written = [[int(word) for word in re.findall("<([0-9]+)>", text)] for text in texts]
        return [ids + [self.job["eos"]] * (len(ids) < length) for ids in written]

    def server(self, slots: int) -> Any:
        """One with so many slots."""
        if slots not in self.servers:
            params = self.xllamacpp.CommonParams()
            params.model.path, params.n_parallel, params.warmup = str(self.path), slots, False
            params.n_ctx = slots * (self.longest + self.job["length"] + 1)
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.job["threads"]
            params.n_gpu_layers, params.ui = 0, False
            self.servers[slots] = self.xllamacpp.Server(params)
        return self.servers[slots]


SIDES = {
    "kd_jax": KdJax,
    "transformers": Transformers,
    "ctranslate2": CTranslate2,
    "ctranslate2_int8": CTranslate2Int8,
    "llama_cpp": LlamaCpp,
}


def up_to_end(ids: Sequence[int], eos: int, length: int) -> list[int]:
    """A text with its end, without what pads it."""
    ids = list(ids)[:length]
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def serve(who: str, folder: Path) -> None:
    """Answers every line of standard input, the name of a case, with {"seconds", "cpu_seconds", "texts"}."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not stand between
    job = json.loads((folder / "job.json").read_text())
    os.environ |= {"OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    try:
        side = SIDES[who](folder, job)
    except ImportError as error:
        print(json.dumps({"absent": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"absent": ""}), file=answers, flush=True)
    for line in sys.stdin:
        case = job["cases"][line.strip()]
        began, worked = time.perf_counter(), time.process_time()
        written = [side.write(batch, case["beam"]) for batch in case["batches"]]
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
        texts = [up_to_end(ids, job["eos"], job["length"]) for rows in written for ids in rows]
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "texts": texts}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
