"""The code of a model card: it generates the texts of the command `generate` without kd_jax."""

from kd_jax.tasks.base import Decoding
from kd_jax.tokenizers.base import PromptFormat

AUTO_CLASSES = {"encoder_decoder": "AutoModelForSeq2SeqLM", "decoder_only": "AutoModelForCausalLM"}
# Formats whose tokenizer AutoTokenizer builds anew from the vocabulary, whatever tokenizer_config.json says.
REBUILT_TOKENIZERS = ("qwen2",)
IDS_CODE = "python generate.py 5 17 9   # token ids of a prompt; it prints token ids"


def transformers_code(
    family: str, model_type: str, prompts: PromptFormat, example: str, max_tokens: int = 0, special_tokens: int = 0
) -> str:
    r"""Return Python code for transformers, in the exported folder.

    Args:
      family: of the model, as Architecture.family.
      model_type: of its config.json.
      prompts: the format of prompts.
      example: the text of a prompt.
      max_tokens: tokens of a text that are kept, 0 for all.
      special_tokens: number of the further tokens of a prompt; not for chats.

    Examples:
      >>> print(transformers_code("encoder_decoder", "t5", PromptFormat("summarize: "), "It rains."))
      from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
      <BLANKLINE>
      tokenizer = AutoTokenizer.from_pretrained(".")
      model = AutoModelForSeq2SeqLM.from_pretrained(".")
      texts = ['It rains.']
      inputs = tokenizer(["summarize: " + text for text in texts], padding=True, return_tensors="pt")
      ids = model.generate(**inputs)
      print(tokenizer.batch_decode(ids, skip_special_tokens=True))
    """
    model, tokenizer = AUTO_CLASSES[family], "AutoTokenizer"
    if model_type in REBUILT_TOKENIZERS:
        tokenizer = "PreTrainedTokenizerFast"
    text = f"{_quoted(prompts.prefix)} + text" if prompts.prefix else "text"
    chats = f'[[{{"role": "user", "content": {text}}}] for text in texts]'
    if prompts.chat is None:
        texts = f"[{text} for text in texts]" if prompts.prefix else "texts"
        truncated = f", truncation=True, max_length={max_tokens + special_tokens}" if max_tokens else ""
        inputs = [f'inputs = tokenizer({texts}, padding=True{truncated}, return_tensors="pt")']
    elif not max_tokens:
        inputs = [
            f"chats = {chats}",
            'options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}',
            "inputs = tokenizer.apply_chat_template(chats, padding=True, **options)",
        ]
    else:
        before, after = map(len, prompts.chat)
        inputs = [
            f"chats = {chats}",
            "chats = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)",
            "prompts = []",
            f"for chat in chats:  # without the tokens of a message after the first {max_tokens + special_tokens}",
            "    encoded = tokenizer(chat, add_special_tokens=False, return_offsets_mapping=True)",
            f"    first, last = {before}, len(chat) - {after}",
            '    places = enumerate(encoded["offset_mapping"])',
            "    message = [i for i, (start, end) in places if end > first and start < last]",
            f"    removed = set(message[{max_tokens + special_tokens}:])",
            '    prompts.append([id for i, id in enumerate(encoded["input_ids"]) if i not in removed])',
            'inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")',
        ]
    lines = [
        f"from transformers import {', '.join(sorted([model, tokenizer]))}",
        "",
        f'tokenizer = {tokenizer}.from_pretrained(".")',
        f'model = {model}.from_pretrained(".")',
        f"texts = [{example!r}]",
        *inputs,
        "ids = model.generate(**inputs)",
        *(['ids = ids[:, inputs["input_ids"].shape[1] :]  # without the prompt'] if family == "decoder_only" else []),
        "print(tokenizer.batch_decode(ids, skip_special_tokens=True))",
    ]
    return "\n".join(lines)


def jax_code(prompts: PromptFormat, example: str, max_tokens: int = 0, special_tokens: int = 0) -> str:
    """Return Python code for JAX and the library tokenizers, in a folder with tokenizer.json.

    Args:
      prompts: the format of prompts.
      example: the text of a prompt.
      max_tokens: tokens of a text that are kept, 0 for all; not for chats.
      special_tokens: number of the further tokens of a prompt.
    """
    before, after = prompts.chat or ("", "")
    before, after = (_quoted(text) if text else "" for text in (before + prompts.prefix, after))
    prompt = " + ".join(part for part in (before, "text", after) if part)
    lines = [
        "from pathlib import Path",
        "",
        "from generate import generate",
        "from tokenizers import Tokenizer",
        "",
        'tokenizer = Tokenizer.from_file("tokenizer.json")',
        *([f"tokenizer.enable_truncation({max_tokens + special_tokens})"] if max_tokens and not prompts.chat else []),
        *([] if prompts.chat else ["tokenizer.encode_special_tokens = True"]),
        f"texts = [{example!r}]",
        f"ids = [tokenizer.encode({prompt}, add_special_tokens={not prompts.chat}).ids for text in texts]",
        'print([tokenizer.decode(text) for text in generate(Path("."), ids)])',
    ]
    return "\n".join(lines)


def describe_decoding(decoding: Decoding, max_prompt_length: int) -> str:
    """Describe how generation_config.json generates texts.

    Examples:
      >>> describe_decoding(Decoding(length_ratio=0.0, length=64), 32)
      'Texts are the most probable tokens, one after the other. A text has at most 64 tokens.'
      >>> describe_decoding(Decoding(length_ratio=1.5, length=8), 32).partition(". ")[2]
      'A text has at most 56 tokens; in kd_jax at most 1.5 times its padded prompt, and 8.'
    """
    sampling, longest = decoding.sampling, decoding.max_length(max_prompt_length)
    texts = "Texts are the most probable tokens, one after the other."
    if sampling.temperature:
        texts = (
            f"Texts are drawn at temperature {sampling.temperature:g}, so every call gives others; "
            "`do_sample=False` takes the most probable tokens."
        )
    of_prompt = f"; in kd_jax at most {decoding.length_ratio:g} times its padded prompt, and {decoding.length}"
    return f"{texts} A text has at most {longest} tokens{of_prompt if decoding.length_ratio else ''}."


def _quoted(text: str) -> str:
    """Return a text as Python code in double quotes.

    Examples:
      >>> print(_quoted('summarize: '), _quoted('say "a"'))
      "summarize: " 'say "a"'
    """
    return repr(text) if '"' in text or "'" in repr(text)[1:-1] else f'"{repr(text)[1:-1]}"'
