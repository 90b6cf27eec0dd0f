"""A chat template is a program from a model file: it may lay out messages and nothing else."""

import json
import subprocess
import sys

import pytest

from kwaai_core import Message
from kwaai_lobe_llama.worker import sandbox, template
from kwaai_lobe_llama.worker.template import ChatTemplate, TemplateError

HELLO = (Message("system", "Be brief."), Message("user", "Hi", "ann"))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GROW = "{% set n = namespace(x='a' * 99999, i=9999) %}{% for _ in range(30) %}"


def test_a_conversation_is_laid_out_with_the_models_own_constants() -> None:
    source = "{{ bos_token }}" + CHATML + "{{ eos_token }}"
    text = ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(HELLO)
    assert text == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n</s>"
    )


def test_a_developer_is_the_system_to_a_template() -> None:
    text = ChatTemplate("{{ messages[0].role }}").render((Message("developer", "x"),))
    assert text == "system"


def test_a_template_may_refuse_a_conversation_with_its_own_words() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TemplateError, match="refuses these messages: roles must alternate"):
        ChatTemplate(source).render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['ctypes'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update({'role': 'x'}) %}",
        "{{ 'a' * 10000000000 }}",
        "{{ ['a'] * 10000000000 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ '\t'.expandtabs(1000000000) }}",
        "{{ 'a'['center'](1000000000) }}",
        "{{ ('a' | attr('rjust'))(1000000000) }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ '{:{}d}'.format(1, 1000000000) }}",
        "{{ ('a' * 9999).translate({97: 'b' * 999999}) }}",
        "{{ ('a' * 9999).encode().replace('a'.encode(), ('b' * 999999).encode()) }}",
        "{{ (1).to_bytes(1000000000, 'big') }}",
        "{{ ('a' * 9999).replace('a', 'b' * 999999) }}",
        "{{ ('a' * 9999) | replace('a', 'b' * 999999) }}",
        "{{ ('a' * 999999).join(range(9999)) }}",
        "{{ range(9999) | join('a' * 999999) }}",
        "{{ [['a'] * 999999] * 9999 | sum(start=[]) }}",
        "{{ [1] | batch(1000000000, 'x') | list }}",
        "{{ 1 | round(1000000000, 'ceil') }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ 'a' | indent(1000000000, true) }}",
        GROW + "{% set n.x = n.x + n.x %}{% endfor %}",
        GROW + "{% set n.x = n.x ~ n.x %}{% endfor %}",
        GROW + "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        GROW + "{% set n.i = n.i * n.i %}{% endfor %}",
        "{% include 'x' %}",
        "{% for x in %}",
        "{% for x in [1] %}" * 25 + "{% endfor %}" * 25,  # more than Python's compiler nests
        "{{ " + "1" * 5000 + " }}",
        "{{ undefined_name.attribute }}",
    ],
)
def test_reaching_out_or_growing_at_once_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError):
        assert not ChatTemplate(source).render(HELLO)


KEEP = (
    "{% set n = namespace(x=[]) %}{% set t = 'a' * 999999 %}{% set u = '\U0001f600@' * 99999 %}"
    "{% for a in range(9999) %}{% for b in range(9999) %}BODY{% endfor %}{% endfor %}"
)
NEST = "{% set n = namespace(x=['a']) %}{% for _ in range(60) %}{% set n.x = BODY %}{% endfor %}"
PILES = [
    *(KEEP.replace("BODY", "{% set n.x = [n.x, WHAT] %}".replace("WHAT", what)) for what in (
        "t ~ b", "t[1:]", "t.upper()", "t | upper", "u.split('@')", "u.partition('@')", "u | list",
        "u | batch(2)", "[0] * 999999", "range(99999) | list", "'{}'.format(t)", "t | e",
        "','.join(u)", "t.replace('a', 'b')", "cycler(*range(99999))",
    )),
    KEEP.replace("BODY", "{% macro m() %}{% endmacro %}{% set n.x = (n.x, m) %}"),
    "{% set x %}" + KEEP.replace("BODY", "x{{ b }}") + "{% endset %}",
    "{% macro m(x) %}{{ m(x ~ 'a' * 99999) }}{% endmacro %}{{ m('') }}",
    NEST.replace("BODY", "[n.x, n.x]") + "{{ n.x }}",
    NEST.replace("BODY", "[n.x, n.x]") + "{{ n.x ~ '' }}",
    NEST.replace("BODY", "[n.x, n.x]") + "{{ n.x | tojson(indent=8) }}",
    NEST.replace("BODY", "[n.x, n.x]") + "{{ n.x | upper }}",
    NEST.replace("BODY", "[n.x, n.x]") + "{{ messages[n.x].name }}",
    NEST.replace("BODY", "[n.x, n.x]") + "{{ raise_exception(n.x) }}",
    NEST.replace("BODY", "{'a': n.x, 'b': n.x}") + "{{ n.x.items() }}",
    "{{ ('{0}' * 300000).format('a' * 99999) }}",
    "{{ (['a' * 999999] * 999999) | sort }}",
    "{{ ('\n' * 999999) | indent(200, true, true) }}",
    "{{ a }}" * 20_000,
]  # fmt: skip
RENDER = """
import json, resource, sys
from kwaai_core import Message
from kwaai_lobe_llama.worker.template import ChatTemplate, TemplateError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source in json.load(sys.stdin):
    try:
        ChatTemplate(source).render([Message("user", "Hi")])
        print("it was laid out:", source[:999])
    except TemplateError as error:
        assert len(str(error)) < 2000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if grown > 200:
        sys.exit(f"{grown} MiB: {source[:999]}")
"""


def test_what_a_template_keeps_has_an_end() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", RENDER], input=json.dumps(PILES), capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_long_conversation_gives_a_template_more_room() -> None:
    source = (
        "{% set n = namespace(text='') %}{% for m in messages if messages | length %}"
        "{% set n.text = n.text + m.role + ': ' + (m.content | trim) + '\\n' %}{% endfor %}"
        "{{ n.text }}"
    )
    said = [Message("user", "word " * 1000) for _ in range(100)]
    assert len(ChatTemplate(source).render(said)) == 100 * len("user: " + "word " * 1000)


def test_what_templates_do_with_texts_is_done() -> None:
    source = (
        "{% generation %}{{ 'a' ~ 1 ~ none }} {{ 'a+b'.replace('+', '-') }} {{ '{}!'.format('x') }}"
        " {{ 'a.b' | replace('.', '', 1) }} {{ [1, 'b'] | join('/') }} {{ ', '.join(['x', 'y']) }}"
        "{% for x in ['a-'] %}{{ x.replace('-', ' ') }}{% endfor %}"
        "{{ 2.345 | round(1) }} {{ [1, 2] | sum }} {{ 'p\nq' | indent(2) }}{% endgeneration %}"
    )
    assert ChatTemplate(source).render(HELLO) == "a1None a-b x! ab 1/b x, ya 2.3 3 p\n  q"


def test_what_a_template_says_when_it_refuses_has_an_end() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("{{ raise_exception('a' * 99999) }}").render(HELLO)
    assert len(str(caught.value)) < 2000


def test_a_step_that_nothing_interrupts_ends_the_process() -> None:
    code = (
        "from kwaai_lobe_llama.worker import template\n"
        "template._LAST_SECONDS = 0.2\n"
        "template._strftime_now = lambda _: pow(3, 10**9)\n"
        "template.ChatTemplate('{{ strftime_now(1) }}').render(())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.startswith(b"Timeout")


def test_a_loop_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_SECONDS", 0.1)
    loop = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    with pytest.raises(TemplateError, match="was stopped"):
        ChatTemplate(loop).render(HELLO)


def test_a_template_that_writes_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_CHARACTERS", 1000)
    with pytest.raises(TemplateError, match="wrote over 1000 characters"):
        ChatTemplate("{% for a in range(999) %}{{ a }}-{% endfor %}").render(HELLO)


def test_a_deadline_that_was_kept_stops_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_SECONDS", 0.01)
    layout = ChatTemplate(CHATML)
    assert all(layout.render(HELLO) == layout.render(HELLO) for _ in range(200))
