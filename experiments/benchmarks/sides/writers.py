"""Generate texts with one library, in a process that decode.py starts.

A side is a class of (folder, job). Its method `write(prompts, beam)` returns the token ids that follow each prompt, of
the best hypothesis if `beam` is above 1. It imports its library when it is built, so a process holds the threads of
one library only.
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
Job = dict[str, Any]  # job.json of decode.py
BOTH = ("encoder_decoder", "decoder_only")


class KdJax:
    """The model of kd_jax, read from the same folder."""

    families, beams = BOTH, True

    def __init__(self, folder: Path, job: Job):
        """Load the model."""
        sys.path.insert(0, str(Path(__file__).parents[3]))
        import jax

        from kd_jax.decoding.beam import beam_search
        from kd_jax.decoding.greedy import greedy
        from kd_jax.models.huggingface.read import read_model

        architecture, params = read_model(folder)
        model, eos, length = architecture.build(job["vocab_size"]), job["eos"], job["length"]
        self.layout, self.params = architecture.layout(job["start"]), jax.device_put(params)
        # The layout adds the start token, which the prompts of a decoder-only model already have.
        self.prompt_start = 1 if job["family"] == "decoder_only" else 0
        self.greedy = jax.jit(functools.partial(greedy, model, eos=eos, length=length))
        search = functools.partial(beam_search, model, alpha=0.0, best=1, eos=eos, length=length)
        best = lambda params, inputs, beam: search(params, inputs, beam=beam).ids_BKT[:, 0]  # noqa: E731
        self.beam_search = jax.jit(best, static_argnames="beam")

    def write(self, prompts: Prompts, beam: int) -> list[list[int]]:
        """Return the ids that follow each prompt."""
        rows = [np.asarray(prompt[self.prompt_start :], np.int32) for prompt in prompts]
        width = -(-max(map(len, rows)) // 8) * 8  # rounded up, so that few widths are compiled
        inputs = self.layout.prompts(rows, len(rows), width)
        ids_BT = self.beam_search(self.params, inputs, beam) if beam > 1 else self.greedy(self.params, inputs)
        return np.asarray(ids_BT).tolist()


class Transformers:
    """The method `generate` of transformers, with the job's settings instead of the folder's."""

    families, beams = BOTH, True

    def __init__(self, folder: Path, job: Job):
        """Load the model."""
        import torch
        import transformers

        torch.set_num_threads(job["threads"])
        self.torch, self.pad, self.seq2seq = torch, job["pad"], job["family"] == "encoder_decoder"
        auto = transformers.AutoModelForSeq2SeqLM if self.seq2seq else transformers.AutoModelForCausalLM
        self.model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        ids = {"pad_token_id": job["pad"], "eos_token_id": job["eos"], "decoder_start_token_id": job["start"]}
        self.model.generation_config = transformers.GenerationConfig(max_new_tokens=job["length"], **ids)

    def write(self, prompts: Prompts, beam: int) -> list[list[int]]:
        """Return the ids that follow each prompt."""
        longest, rows, mask = max(map(len, prompts)), [], []
        for prompt in prompts:  # an encoder pads on the right, a decoder-only model on the left
            left, right = (0, longest - len(prompt)) if self.seq2seq else (longest - len(prompt), 0)
            rows.append([self.pad] * left + list(prompt) + [self.pad] * right)
            mask.append([0] * left + [1] * len(prompt) + [0] * right)
        generate = functools.partial(
            self.model.generate,
            input_ids=self.torch.tensor(rows),
            attention_mask=self.torch.tensor(mask),
            num_beams=beam,
            do_sample=False,
        )
        ids_BT = generate(length_penalty=0.0, early_stopping=False) if beam > 1 else generate()
        return ids_BT[:, 1 if self.seq2seq else longest :].tolist()


class CTranslate2:
    """A model converted for CTranslate2, in one of its number types."""

    families, beams, quantization = BOTH, True, "float32"

    def __init__(self, folder: Path, job: Job):
        """Load the model."""
        import ctranslate2

        converted = folder / f"ctranslate2_{self.quantization}"
        if not converted.exists():
            converter = ctranslate2.converters.TransformersConverter(str(folder))
            converter.convert(str(converted), quantization=self.quantization)
        threads = {"intra_threads": job["threads"], "inter_threads": 1, "compute_type": self.quantization}
        self.words = read_tokens(folder)
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
        """Return the ids that follow each prompt."""
        words = [[self.words[i] for i in prompt] for prompt in prompts]
        results = self.translate(words, beam_size=beam, length_penalty=0, return_end_token=True)
        return [[self.ids[word] for word in self.best(result)] for result in results]


class CTranslate2Int8(CTranslate2):
    """Weights and activations of the matrix products in 8 bits."""

    quantization = "int8"


def read_tokens(folder: Path) -> list[str]:
    """Return the token of each id."""
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    # A unigram model has a list of (token, score), other models have token -> id.
    return [word for word, _ in (vocab if isinstance(vocab, list) else sorted(vocab.items(), key=lambda item: item[1]))]


class LlamaCpp:
    """A Llama as GGUF, in the server of llama.cpp within this process, with one slot for each text of a batch."""

    families, beams = ("decoder_only",), False

    def __init__(self, folder: Path, job: Job):
        """Load the model."""
        import gguf_file  # beside this file
        import xllamacpp

        path = folder / "model.gguf"
        if not path.exists():
            # Each token's text is its id, because the server answers with text.
            gguf_file.write(path, folder, [f"<{i}>" for i in range(job["vocab_size"])], job)
        self.job, self.xllamacpp, self.path = job, xllamacpp, path
        self.longest = max(len(prompt) for case in job["cases"].values() for one in case["batches"] for prompt in one)
        self.servers: dict[int, Any] = {}

    def write(self, prompts: Prompts, beam: int) -> list[list[int]]:
        """Return the ids that follow each prompt."""
        length = self.job["length"]
        request = {"prompt": [list(prompt) for prompt in prompts], "n_predict": length, "cache_prompt": False}
        request |= {"samplers": ["top_k"], "top_k": 1}
        answer = self.server(len(prompts)).handle_completions(request)
        answers = answer if isinstance(answer, list) else [answer]
        texts = [choice["text"] for one in answers for choice in one["choices"]]
        ids_of_texts = [[int(word) for word in re.findall("<([0-9]+)>", text)] for text in texts]
        return [ids + [self.job["eos"]] * (len(ids) < length) for ids in ids_of_texts]

    def server(self, slots: int) -> Any:
        """Return the server with this number of slots."""
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
    """Return a text up to its end token, without padding."""
    ids = list(ids)[:length]
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def serve(library: str, folder: Path) -> None:
    """Answer each line of standard input, the name of a case, with {"seconds", "cpu_seconds", "texts"}."""
    answers, sys.stdout = sys.stdout, sys.stderr  # keeps the libraries' own lines out of the answers
    job = json.loads((folder / "job.json").read_text())
    os.environ |= {"OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    try:
        side = SIDES[library](folder, job)
    except ImportError as error:
        print(json.dumps({"import_error": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"import_error": ""}), file=answers, flush=True)
    for line in sys.stdin:
        case = job["cases"][line.strip()]
        start_time, cpu_start_time = time.perf_counter(), time.process_time()
        generated = [side.write(batch, case["beam"]) for batch in case["batches"]]
        seconds, cpu_seconds = time.perf_counter() - start_time, time.process_time() - cpu_start_time
        texts = [up_to_end(ids, job["eos"], job["length"]) for rows in generated for ids in rows]
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "texts": texts}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
