"""Chat templates equal transformers' and have a budget; the date that they print is fixed by `prepare`."""

import concurrent.futures
import datetime
import json
import multiprocessing
import os
import resource
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from kd_jax.errors import KdError
from kd_jax.tokenizers import chat, hf_folder
from kd_jax.tokenizers.chat import Chat, freeze
from kd_jax.tokenizers.huggingface import HuggingFaceTokenizer
from tests.helpers.pretrained import CHAT, TEXTS, TOKENIZERS, write_pretrained
from tests.helpers.tokenizers import prepare_tokenizer
from tests.world.chat_templates import GREEDY, TEMPLATES

DAY = datetime.datetime(2024, 2, 29, 23, 59)
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "image_token": "<image>"}
MESSAGES = [
    "Hello",
    "",
    "  spaces \n\n",
    "a\tb\nc",
    "<t>x",
    "{{ 7 * 7 }} {% for %}",
    "é ☃ 😀 \u202e \ud800 '\"\\",
    "<think>",
]
ANSWERS = [None, "Fine.", "<think>\nwell\n</think>\n\n yes", " b "]
SECONDS = 10  # of wall-clock time, on a busy machine; alone a refusal takes about one
SMOL_INSTRUCT = (  # as in the folder of SmolLM2-135M-Instruct
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def theirs():
    """Return a function that renders with transformers: (template, message, answer) -> text."""
    hf = pytest.importorskip("transformers")
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["decoder_only"](), **NAMES)

    def render(template, message, answer):
        messages = [{"role": "user", "content": message}]
        messages += [{"role": "assistant", "content": answer}] if answer is not None else []
        return tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=answer is None, tokenize=False
        )

    return render


def ours(template, message, answer, now=None):
    frozen = freeze(template, NAMES, now or datetime.datetime.now())
    return Chat(frozen, {}).render(message, answer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_equal_transformers(name, theirs):
    for message in MESSAGES:
        for answer in ANSWERS:
            assert ours(TEMPLATES[name], message, answer) == theirs(TEMPLATES[name], message, answer)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(TEMPLATES)), message=st.text(max_size=30), answer=st.none() | st.text(max_size=30))
def test_chats_of_any_text_equal_transformers(theirs, name, message, answer):
    assert ours(TEMPLATES[name], message, answer) == theirs(TEMPLATES[name], message, answer)


def test_blanks_before_a_frozen_template_stay(theirs):
    for template in ("\n\n  {% if true %}\n x{% endif %}{{ eos_token }}", "  {{ eos_token }}\n", " {%- set x = 1 %}\n"):
        template += "{{ messages[0].content }}{{ strftime_now('%Y') }}"
        assert ours(template, "a", None) == theirs(template, "a", None)


@pytest.mark.parametrize("where", ["file", "config", "list", "both"])
def test_prompts_equal_transformers_in_a_folder(where, tmp_path):
    """The ids of a prompt are those of apply_chat_template, wherever the folder has its template."""
    hf = pytest.importorskip("transformers")
    folder = write_pretrained(tmp_path / "model", "decoder_only")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if where in ("file", "both"):
        (folder / "chat_template.jinja").write_text(CHAT)
    if where != "file":
        several = [{"name": "rag", "template": "no"}, {"name": "default", "template": CHAT}]
        config["chat_template"] = {"config": CHAT, "list": several, "both": "{{ messages }}"}[where]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = prepare_tokenizer(HuggingFaceTokenizer(str(folder), chat=True), tmp_path / "data", TEXTS)
    library = hf.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS[:10]:
        chats = [{"role": "user", "content": text}]
        expected = library.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert [tokenizer.start, *tokenizer.encode_prompt(text)] == expected


@pytest.mark.parametrize("cut", [False, True])
def test_prompts_and_answers_equal_transformers_where_a_chat_starts_with_the_bos_token(cut, tmp_path):
    """SmolLM2-Instruct's layout: bos is <|im_start|>, eos is <|im_end|>, and the template adds a system prompt."""
    hf = pytest.importorskip("transformers")
    folder, exported, data = tmp_path / "model", tmp_path / "exported", tmp_path / "data"
    folder.mkdir()
    exported.mkdir()
    library = TOKENIZERS["decoder_only"]()
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    library.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    names |= {"unk_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": SMOL_INSTRUCT}))
    prompts = [*TEXTS[:6], "In which section are 1234 boats?", " é ☃\n\nx ", "<|im_end|> ends nothing", ""]
    tokenizer = prepare_tokenizer(HuggingFaceTokenizer(str(folder), chat=True, cut=cut), data, [*prompts, *TEXTS])
    tokenizer.export(exported, "decoder_only", True)
    theirs = hf.AutoTokenizer.from_pretrained(exported if cut else folder)
    assert (tokenizer.vocab_size < library.get_vocab_size()) == cut
    for text in prompts:
        chats = [{"role": "user", "content": text}]
        words = theirs.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        assert words.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM,")
        expected = theirs.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = [tokenizer.start, *tokenizer.encode_prompt(text)]
        assert ids == expected
        chats.append({"role": "assistant", "content": TEXTS[7]})
        both = theirs.apply_chat_template(chats, return_dict=True)["input_ids"]
        answered = [*ids, *tokenizer.encode(TEXTS[7]), tokenizer.eos]
        assert both[: len(answered)] == answered and theirs.decode(both[len(answered) :]) == "\n"


def test_special_tokens_of_a_folder():
    """Written as text, as AddedToken, and for one model; None is no token."""
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    config |= {"sep_token": "<sep>", "extra_special_tokens": {"image_token": "<image>"}, "add_bos_token": True}
    expected = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "<sep>", "image_token": "<image>"}
    assert hf_folder.template_variables(config) == expected


def test_a_template_sees_the_folder_s_end_even_if_ours_is_another(tmp_path):
    template = "{{ eos_token }}{% for m in messages %}[{{ m.content }}]{{ '<pad>' }}{% endfor %}"
    folder = write_pretrained(tmp_path / "model", "decoder_only", chat=template)
    settings_of = HuggingFaceTokenizer(str(folder), chat=True, end="<pad>")
    tokenizer = prepare_tokenizer(settings_of, tmp_path / "data", TEXTS)
    pieces = tokenizer.pieces()
    assert (pieces[tokenizer.start], pieces[tokenizer.eos]) == ("</s>", "<pad>")


# Budget


@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_template_ends_in_one_line(name):
    template, reason = GREEDY[name]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(
        KdError, match=f"(?i)tokenizer.chat: expected a template .*got the error: .*({reason})"
    ) as error:
        Chat(template, {}).render("x")
    assert time.monotonic() - began < SECONDS and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_the_next_template_renders_after_a_greedy_one():
    chat_of = Chat(GREEDY["on_other_messages"][0], {})
    assert chat_of.render("a") == "a"
    with pytest.raises(KdError):
        chat_of.render("x")
    with pytest.raises(KdError):
        Chat(GREEDY["nested_ranges"][0], {}).render("a")
    assert chat_of.render("b") == "b" and Chat("{{ messages[0].role }}", {}).render("x") == "user"


def test_a_template_s_message_is_shown_without_control_characters():
    with pytest.raises(KdError) as error:
        Chat("{{ raise_exception('\x1b[2J\u202e no\n\nuser') }}", {}).render("x")
    assert str(error.value).endswith("got the error: \\x1b[2J\\u202e no user. Correct it.")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ open('/etc/passwd') }}",
        "{% include 'x' %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.a.b }}",
    ],
)
def test_templates_reach_nothing(template):
    with pytest.raises(KdError, match="got the error"):
        Chat(template, {}).render("x")


def test_long_messages_are_rendered():
    text = "word " * 400_000
    assert Chat("<{{ messages[0].content | trim }}>", {}).render(text) == f"<{text.strip()}>"


def test_a_very_long_template_is_refused_unread():
    with pytest.raises(KdError, match="got one of 1000001 characters"):
        Chat("x" * 1_000_001, {}).render("a")


def test_threads_share_a_process():
    chats = [Chat(f"{i}{{{{ messages[0].content }}}}", {}) for i in range(6)]  # more than are kept
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: chats[i % 6].render(str(i)), range(300)))
    assert texts == [f"{i % 6}{i}" for i in range(300)]


def _render_in_fork(queue, chat_of):
    queue.put([chat_of.render(str(i)) for i in range(50)])


def test_a_forked_process_has_its_own():
    chat_of, context = Chat("{{ messages[0].content }}", {}), multiprocessing.get_context("fork")
    assert chat_of.render("a") == "a"
    queue = context.SimpleQueue()
    child = context.Process(target=_render_in_fork, args=(queue, chat_of))
    child.start()
    assert [chat_of.render(f"p{i}") for i in range(50)] == [f"p{i}" for i in range(50)]
    assert queue.get() == [str(i) for i in range(50)]
    child.join()
    assert child.exitcode == 0 and chat_of.render("b") == "b"


def test_no_process_is_left(tmp_path):
    """The worker ends when its parent is killed."""
    code = "import os; from kd_jax.tokenizers.chat import Chat, _renderer; Chat('a', {}).render('b');"
    code += "print(_renderer('a', os.getpid())._process.pid); os.kill(os.getpid(), 9)"
    killed = subprocess.run([chat.sys.executable, "-c", code], capture_output=True, text=True)
    worker = int(killed.stdout)
    for _ in range(100):
        if not _is_running(worker):
            break
        time.sleep(0.1)
    assert not _is_running(worker)


def _is_running(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process_id}/stat") as file:
        return file.read().split()[2] != "Z"


# Dates


@pytest.mark.parametrize(
    "template, expected",
    [
        ("{{ strftime_now('%d %b %Y') }}", "29 Feb 2024"),
        ("{{ strftime_now(format='%H:%M') }}", "23:59"),
        ("{% if strftime_now is defined %}{{ strftime_now('%Y') ~ strftime_now('%y') }}{% endif %}", "202424"),
        (
            "{% macro day() %}{{ strftime_now('%A') }}{% endmacro %}{% for m in messages %}{{ day() }}{% endfor %}",
            "Thursday",
        ),
        ("{% set f = strftime_now %}{% if false %}{{ strftime_now('%j') }}{% endif %}{{ f('%j') }}", "060"),
        ("{{ strftime_now('%d \"é\" {{ }}') }}", '29 "é" {{ }}'),
        ("no date", "no date"),
    ],
)
def test_dates_are_fixed(template, expected):
    frozen = freeze(template, {}, DAY)
    assert Chat(frozen, {}).render("x") == expected
    assert (frozen == template) == (template == "no date")
    again = freeze(frozen, {}, DAY + datetime.timedelta(days=99))  # an exported folder is prepared once more
    assert Chat(again, {}).render("x") == expected


def test_a_format_that_is_made_while_rendering_is_refused():
    with pytest.raises(KdError, match="strftime_now: expected a format that is written in the template"):
        Chat(freeze("{{ strftime_now('%' ~ messages[0].content) }}", {}, DAY), {}).render("Y")


class Calendar:
    """A clock for `prepare`."""

    now_is = DAY

    @classmethod
    def now(cls):
        return cls.now_is


def test_ids_do_not_change_at_midnight(tmp_path, monkeypatch):
    """A prepared tokenizer keeps its date; preparing on another day gives another tokenizer only if it has a date."""
    monkeypatch.setattr("kd_jax.tokenizers.huggingface.datetime.datetime", Calendar)
    dated = CHAT.replace("{{ m.content }}", "{{ m.content }} on {{ strftime_now('%d.%m.%Y') }}")
    for name, template in {"dated": dated, "plain": CHAT}.items():
        folder = write_pretrained(tmp_path / name, "decoder_only", chat=template)
        settings_of, bytes_of, prompts = HuggingFaceTokenizer(str(folder), chat=True), [], []
        for day in range(2):
            Calendar.now_is = DAY + datetime.timedelta(days=day)
            data = tmp_path / f"{name}{day}"
            prompts.append(prepare_tokenizer(settings_of, data, TEXTS).encode_prompt("a boat"))
            bytes_of.append({path.name: path.read_bytes() for path in data.iterdir()})
        first = settings_of.load(tmp_path / f"{name}0")
        assert first.encode_prompt("a boat") == prompts[0]  # loaded on the second day
        assert (bytes_of[0] == bytes_of[1]) == (prompts[0] == prompts[1]) == (name == "plain")
        if name == "dated":
            assert "29.02.2024" in first.decode(prompts[0]) and "01.03.2024" in first.decode(prompts[1])
