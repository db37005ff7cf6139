"""Chat templates render as transformers renders them, and hostile ones end soon, in one line."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from runtime import chat_template
from runtime.chat_template import ChatTemplate

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<img>"}
# What the published templates of each family do, each with its own constructs.
FAMILIES = {
    "llama 3.1": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set head = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set head = "" %}{%- endif %}
{{- "<|h|>system<|/h|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{% endif %}
{{- "Today: " + date_string + "\\n\\n" + head + "<|e|>" }}
{%- for message in messages %}
    {{- '<|h|>' + message['role'] + '<|/h|>\\n\\n'+ message['content'] | trim + '<|e|>' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\\n\\n' }}{%- endif %}""",
    "qwen 2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- elif messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
    "qwen 3": """{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not
        (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}
    {%- else %}{%- set content = '' %}{%- endif %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ ns.last }}
    {%- if loop.last or loop.index0 > ns.last %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}{%- endif %}
{%- endif %}""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- if tools is not none and (message == users[-1]) %}
        {{- "[TOOLS]" + (tools|tojson) }}{%- endif %}
    {{- "[INST] " + message["content"] + "[/INST]" }}
{%- endfor %}""",
    "phi 3": """{% for message in messages %}{% if message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% else %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}""",
    "deepseek": """{% if not add_generation_prompt is defined %}
{% set add_generation_prompt = false %}
{% endif %}{% set ns = namespace(is_first=false, system_prompt='') %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{bos_token}}{{ns.system_prompt}}
{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}
{{'<|User|>' + message['content']}}{%- endif %}{%- endfor -%}
{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|>'}}{% endif %}""",
    "generation": """{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}
{% endgeneration %}{% endfor %}{{ image_token }}""",
}
CONTENTS = [
    "Hello",
    "  spaces \n",
    "<b>&\"'</b> é☃",
    "{{ bos_token }}{% if %}",
    "</think>x",
    "",
    "x" * 5000,
]


def theirs(template: str, content: str) -> str:
    chat = [{"role": "user", "content": content}]
    return render_jinja_template(
        conversations=[chat], chat_template=template, add_generation_prompt=True, **NAMES
    )[0][0]


def ours(template: str, content: str) -> str:
    return ChatTemplate(template).render([{"role": "user", "content": content}], NAMES)


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_template_renders_as_in_transformers(family: str, content: str) -> None:
    assert ours(FAMILIES[family], content) == theirs(FAMILIES[family], content)


EXPRESSIONS = """
messages[0].content
messages|length
messages[0]['role']|upper
tools is none
documents is none
tools is defined
bos_token + eos_token
image_token
sep_token is defined
messages|tojson
messages[0]|tojson(indent=2)
[1, 2, 3]|join('-')
messages|map(attribute='role')|list
'a' ~ 1 ~ none ~ messages[0].content
'%s-%03d' % ('x', 5)
'%s-%03d'|format('x', 5)
'{}:{:>5}'.format('a', 'b')
'a,b'.split(',')|last
'x' * 3
2 ** 5
[1] + [2]
'ab'|replace('a', 'c')
'a long text'|truncate(4)
'a'|center(9)
undefined_name
undefined_name.field
1 / 0
messages[7]
strftime_now('%Y')
raise_exception('no')
''.join(['a'])
namespace(a=1).a
range(3)|list
'abc'[::-1]
messages[0].items()|list
'x'.__class__
'a' in 'abc'
cycler(1, 2).next()
'x\\ny'|indent(2, true)
[3, 1]|sort|first
'xyz'|batch(2)|list
{'a': 1}|dictsort
'é<>'|tojson
messages|selectattr('role', 'equalto', 'user')|list|length
""".strip().splitlines()


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(
                ["{{ %s }}", "{%% if %s %%}\n  yes\n{%% endif %%}", "{%% set y = %s %%}{{ y }}"]
                + ["{%%- for x in [1, 2] %%}{{ %s }}{{ loop.index }}{%% if x == 1 %%}"
                   "{%% continue %%}{%% endif %%}{%% endfor %%}", "{%% generation %%}{{ %s }}"
                   "{%% endgeneration %%}"]
            ),
            st.sampled_from(EXPRESSIONS),
        ),
        min_size=1,
        max_size=4,
    ),
    content=st.text(max_size=12),
)  # fmt: skip
def test_any_template_gives_the_text_of_transformers_or_is_refused_where_that_fails(
    parts: list[tuple[str, str]], content: str
) -> None:
    template = "\n".join(shape % expression for shape, expression in parts)
    expected: Any
    try:
        expected = theirs(template, content)
    except Exception:
        expected = None
    try:
        found = ours(template, content)
    except ValueError as error:
        assert "\n" not in str(error)
        found = None
    assert found == expected


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "repeats": "{{ 'a' * 10**12 }}",
    "repeats a list": "{{ [0] * 10**12 }}",
    "doubles by ~": "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubles by +": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "powers": "{{ 9 ** (9 ** 99) }}",
    "wide filter": "{{ 'x'|center(10**10) }}",
    "wide method": "{{ 'x'.ljust(10**10) }}",
    "wide format": "{{ '%9999999999d'|format(1) }}",
    "wide %": "{{ '%9999999999d' % 1 }}",
    "wide str.format": "{{ '{:9999999999}'.format(1) }}",
    "replace": "{% set x = 'a' * 1000000 %}{{ x|replace('a', x) }}",
    "replace method": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    "endless output": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "big range": "{{ range(10**12)|list }}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escape by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "escape by attr": "{{ (''|attr('__class__')).__mro__ }}",
    "mutation": "{{ messages.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "syntax": "{% if %}",
    "unknown tag": "{% import os %}",
    "deep nesting": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"chat template cannot be (read|rendered)") as error:
        ours(HOSTILE[name], "x")
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


def test_what_a_template_refuses_is_said_in_its_words() -> None:
    with pytest.raises(ValueError, match="refuses this conversation: no system role here"):
        ours("{{ raise_exception('no system\nrole here') }}", "x")
