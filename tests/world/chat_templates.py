"""Chat templates in the manner of published models: every construct of Jinja that those use, in words of our own."""

LLAMA3 = """\
{{- bos_token }}
{%- if not day is defined %}
    {%- if strftime_now is defined %}
        {%- set day = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set day = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|head|>system<|end_head|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools: " ~ tools | tojson(indent=4) }}
{%- endif %}
{{- "Today: " + day + "\\n\\n" + system + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '<|end_head|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- else %}
        {{- raise_exception("No tools here!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|end_head|>\\n\\n' }}
{%- endif %}
"""
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helper.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and not message.content.startswith('<t>') %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role in ["user", "system"] %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('No system message, please') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate: user, assistant, ...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' + ("" if not loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
MISTRAL = """\
{%- set loop_messages = messages %}
{%- if not tools is defined %}{%- set tools = none %}{%- elif tools is not none %}{{- tools }}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages | rejectattr("role", "equalto", "tool") %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}{{- "[TOOLS]" }}{%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- else %}
        {%- generation %}
        {{- " " + message["content"] + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""
SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are small.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI = """\
{% for message in messages %}
{% if message['role'] == 'system' and message['content'] %}
{{'<|system|>
' + message['content'] + '<|end|>
'}}
{% elif message['role'] == 'user' %}
{{'<|user|>
' + message['content'] + '<|end|>
'}}
{% elif message['role'] == 'assistant' %}
{% generation %}
{{'<|assistant|>
' + message['content'] + '<|end|>
'}}
{% endgeneration %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>
' }}
{% else %}
{{ eos_token }}
{% endif %}
"""
DOCUMENTED = """\
{% macro turn(role, text) %}<{{ role }}>{{ text }}{{ eos_token }}{% endmacro %}
{{ bos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token is defined }}{{ image_token }}
{% if documents is none %}{{ {"é": [1, "<"]} | tojson }}{{ documents | default("none", true) }}{% endif %}
    {% set state = dict(count=0) %}
{% for message in messages %}
  {% if loop.index > 40 %}{% continue %}{% endif %}
  {{ turn(message.role, message.content) }}
{% endfor %}
{% macro boxed() %}[{{ caller() }}]{% endmacro %}{% call boxed() %}b{% endcall %}
{{ ["x", "y"] | join("-") }}{{ "%s!" | format("z") }}{{ [3, 1] | sort | first }}{{ "a b" | replace(" ", "_") | upper }}
{% if add_generation_prompt %}<assistant>{% endif %}
"""
TEMPLATES = {
    "llama3": LLAMA3,
    "qwen": QWEN,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "smol": SMOL,
    "phi": PHI,
    "documented": DOCUMENTED,
}
# Name -> (template that wants too much, what the message says).
GREEDY = {
    "nested_ranges": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "processor time",
    ),
    "words": ("{{ lipsum(n=1000000) }}", "processor time|memory"),
    "repeated": ("{{ 'a' * 10**10 }}", "memory"),
    "repeated_at_run_time": ("{{ messages[0].role * 10**10 }}", "memory"),
    "list": ("{{ [1] * 10**9 }}", "memory"),
    "centred": ("{{ 'a' | center(10**10) }}", "memory"),
    "indented": ("{{ 'a\nb' | indent(10**10) }}", "memory"),
    "formatted": ("{{ '{:>10000000000}'.format(1) }}", "memory"),
    "percent": ("{{ '%1000000000d' % 1 }}", "memory"),
    "doubled": (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "memory",
    ),
    "json": ("{{ messages | tojson(indent=10**10) }}", "memory"),
    "long": ("{{ 'a' * 3000000 }}", "a chat of 3000000 characters"),
    "recursive": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "deep": ("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "recursion"),
    "power": ("{{ 7 ** (10 ** 9) }}", "processor time|memory"),
    "on_other_messages": (
        "{% if messages[0].content == 'x' %}{{ 'a' * 10**10 }}{% endif %}{{ messages[0].content }}",
        "memory",
    ),
}
