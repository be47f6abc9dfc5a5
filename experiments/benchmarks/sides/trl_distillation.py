"""Make on-policy updates with TRL's DistillationTrainer, in a process that on_policy.py starts.

It reads a line of standard input before each block of updates, and writes the seconds of each update of the block.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def llama(shape: dict[str, int], job: dict[str, Any]) -> Any:
    """Return a Llama of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    special = {"bos_token_id": job["start"], "eos_token_id": job["eos"], "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=job["vocab_size"], tie_word_embeddings=True, **shape, **special))


def word_tokenizer(vocab_size: int) -> Any:
    """Return a tokenizer whose words are w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")


def main() -> None:
    """Train as the job of the first argument says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])

    class Clock(TrainerCallback):
        """Waits for a line before each block of updates, and answers with their seconds."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.seconds and not sys.stdin.readline():
                sys.exit()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)
            if len(self.seconds) == job["block"]:
                print(json.dumps(self.seconds), flush=True)
                self.seconds = []

    prompts = [" ".join(f"w{i}" for i in ids) for ids in job["prompts"]]
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder,
            per_device_train_batch_size=job["rows"],
            max_completion_length=job["text"],
            generation_kwargs={"min_new_tokens": job["text"]},
            max_steps=10**6,
            learning_rate=3e-3,
            beta=0.0,  # forward KL
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = DistillationTrainer(
            model=llama(job["student"], job),
            teacher_model=llama(job["teacher"], job),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=word_tokenizer(job["vocab_size"]),
            callbacks=[Clock()],
        )
        trainer.train()


if __name__ == "__main__":
    main()
