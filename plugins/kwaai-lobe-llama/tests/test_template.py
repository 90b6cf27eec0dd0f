"""A chat template is a program from a model file: it may lay out messages and nothing else."""

import pytest

from kwaai_core import Message
from kwaai_lobe_llama.worker import template
from kwaai_lobe_llama.worker.template import ChatTemplate, TemplateError

HELLO = (Message("system", "Be brief."), Message("user", "Hi", "ann"))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
        "{% include 'x' %}",
        "{% for x in %}",
        "{{ undefined_name.attribute }}",
    ],
)
def test_reaching_out_or_growing_at_once_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError):
        assert not ChatTemplate(source).render(HELLO)


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
