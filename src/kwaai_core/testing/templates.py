"""Chat templates with tools, in the manners that models have."""

__all__ = ["BARE_TOOLS", "STRANGE_TOOLS", "TAGGED_TOOLS"]

_LAYOUT = """\
{%- if tools %}<|im_start|>system
You can call these functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}To call one, answer with SHOWN<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.tool_call_id %}({{ message.tool_call_id }}) {% endif %}{{ message.content }}
{%- if message.tool_calls %}MADE{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def _template(shown: str, made: str) -> str:
    return _LAYOUT.replace("SHOWN", shown).replace("MADE", made)


TAGGED_TOOLS = _template(
    '<tool_call>\n{"name": "its name", "arguments": {...}}\n</tool_call>',
    "{% for call in message.tool_calls %}"
    "{% if message.content or not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}',
)
"""Calls in tags, one after another, as Qwen2.5 and Hermes write them."""

BARE_TOOLS = _template(
    '{"name": "its name", "parameters": {...}} and nothing else',
    "{% if message.tool_calls | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    "{% set call = message.tool_calls[0].function %}"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}',
)
"""One call, which is the whole answer, as Llama 3 writes it."""

STRANGE_TOOLS = _template(
    "[its name({...})]",
    "{% for call in message.tool_calls %}[{{ call.function.name }}"
    "({{ call.function.arguments | tojson }})]{% endfor %}",
)
"""Calls in a form of its own."""
