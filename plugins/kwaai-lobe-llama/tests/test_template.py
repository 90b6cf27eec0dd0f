"""A chat template is a program from a model file: it may lay out messages and nothing else."""

import subprocess
import sys

import pytest

from kwaai_core import Message
from kwaai_lobe_llama.worker import template
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
    monkeypatch.setattr(template, "MAX_CHARACTERS", 1000)
    with pytest.raises(TemplateError, match="wrote over 1000 characters"):
        ChatTemplate("{% for a in range(999) %}{{ a }}-{% endfor %}").render(HELLO)


def test_a_deadline_that_was_kept_stops_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MAX_SECONDS", 0.01)
    layout = ChatTemplate(CHATML)
    assert all(layout.render(HELLO) == layout.render(HELLO) for _ in range(200))
