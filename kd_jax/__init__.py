"""kd_jax: knowledge distillation of language-generation models in JAX.

What a person writes in a config, a notebook or a loop of their own; each name is loaded when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "kd_jax.config": ("load_experiment",),
    "kd_jax.errors": ("KdError",),
    "kd_jax.types": ("Batch", "Inputs", "Sum", "Tokens"),
    "kd_jax.experiment": ("Comparison", "Evaluation", "Experiment", "Recipe", "Training"),
    "kd_jax.sources.debian": ("Debian",),
    "kd_jax.sources.directions": ("Directions",),
    "kd_jax.sources.files": ("Files",),
    "kd_jax.sources.tfds": ("Tfds",),
    "kd_jax.sources.toy": ("Toy",),
    "kd_jax.tokenizers.huggingface": ("HuggingFaceTokenizer",),
    "kd_jax.tokenizers.m2m100": ("M2M100Tokenizer",),
    "kd_jax.tokenizers.marian": ("MarianTokenizer",),
    "kd_jax.tokenizers.sentencepiece": ("SentencePiece",),
    "kd_jax.batches.targets": ("PseudoTargets",),
    "kd_jax.tasks.base": ("Decoding", "Sampling"),
    "kd_jax.tasks.generation": ("Generation",),
    "kd_jax.tasks.instructions": ("Instructions",),
    "kd_jax.tasks.summarization": ("Summarization",),
    "kd_jax.tasks.translation": ("Translation",),
    "kd_jax.models.base": ("Head",),
    "kd_jax.models.decoder_only": ("DecoderOnly",),
    "kd_jax.models.encoder_decoder": ("EncoderDecoder",),
    "kd_jax.students.init": ("FromCheckpoint", "FromTeacher", "Random"),
    "kd_jax.students.pretrained": ("FromHuggingFace", "Smaller"),
    "kd_jax.optim.optimizer": ("Optimizer",),
    "kd_jax.schedules": ("Schedule",),
    "kd_jax.objective.terms": ("StepInputs", "Term", "TokenInputs", "total_loss"),
    "kd_jax.objective.fused_head": ("fused_head", "map_head"),
    "kd_jax.runtime.mesh": ("Mesh",),
    "kd_jax.signals.topk": ("TopK",),
    "kd_jax.signals.sampled": ("Sampled",),
    "kd_jax.signals.online": ("Online",),
    "kd_jax.signals.features": ("AttentionRelations", "HiddenStates"),
    "kd_jax.losses.cross_entropy": ("cross_entropy",),
    "kd_jax.losses.divergence": (
        "forward_kl",
        "jensen_shannon",
        "reverse_kl",
        "skewed_forward_kl",
        "skewed_reverse_kl",
        "total_variation",
    ),
    "kd_jax.losses.features": ("cosine", "mse"),
    "kd_jax.decoding.greedy": ("greedy",),
    "kd_jax.decoding.sampling": ("sample",),
    "kd_jax.decoding.beam": ("beam_search",),
    "kd_jax.api": ("run",),
    "kd_jax.training.step": ("eval_step", "init_state", "loss_fn", "train_step"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Loads what is asked for (PEP 562): importing kd_jax imports neither JAX nor Flax."""
    if name not in _HOME:
        raise AttributeError(f"module 'kd_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return vars(importlib.import_module(_HOME[name]))[name]


def __dir__() -> list[str]:
    return sorted(__all__)
