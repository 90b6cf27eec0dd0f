"""From bodies to requests: what is honoured, what is accepted, what is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.errors import RequestError, RequestTooLarge, UnsupportedParameter
from kwaai_core.openai import Call, parse_chat, parse_completion
from kwaai_core.openai.strict import MAX_DEPTH, load_object
from kwaai_core.types import Intent, Message, Sampling, TokenIds, ToolCall

from .conftest import chat_body


def chat(**more: Any) -> Call:
    return parse_chat(json.dumps(chat_body(**more)).encode())


def complete(prompt: Any = "once", **more: Any) -> Call:
    return parse_completion(json.dumps({"model": "m", "prompt": prompt} | more).encode())


def refusal(**more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        chat(**more)
    return caught.value


def function(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "get"} | more}


TOOL = function()


def test_defaults_are_llama_cpps_and_a_max_of_what_the_context_has() -> None:
    call = chat()
    assert call.request.intent.model == "tiny/model"
    assert call.request.intent.exact is None
    assert call.request.prompt == (Message("user", "hi"),)
    sampling = Sampling(temperature=0.8, top_p=0.95, top_k=40, seed=None, min_p=0.05)
    assert call.request.sampling == sampling
    assert not sampling.penalises
    assert (call.request.stop, call.request.max_tokens) == ((), None)
    assert (call.stream, call.include_usage) == (False, False)


def test_everything_honoured_arrives() -> None:
    call = chat(
        temperature=0, top_p=0.5, top_k=3, seed=-(2**63), stop=["a", "b"], max_tokens=16.0,
        max_completion_tokens=16, stream=True, stream_options={"include_usage": True},
        min_p=0.25, presence_penalty=-2, frequency_penalty=0.5, repetition_penalty=1.5,
        repeat_penalty=1.5, logit_bias={"50256": -100, "0": 1.5},
        kwaai={
            "exact": True, "min_tier": "verified", "max_latency_ms": 50.5, "local_blocks": 2,
            "max_first_token_ms": 800, "max_price": 7, "timing": True,
        },
    )  # fmt: skip
    assert call.request.intent == Intent(
        "tiny/model", min_tier="verified", max_latency_ms=50.5, max_first_token_ms=800.0,
        max_price=7, local_blocks=2, exact=True,
    )  # fmt: skip
    assert call.timing
    biases = ((0, 1.5), (50256, -100.0))
    assert call.request.sampling == Sampling(0.0, 0.5, 3, -(2**63), 0.25, -2.0, 0.5, 1.5, biases)
    assert call.request.sampling.penalises
    assert call.request.stop == ("a", "b")
    assert call.request.max_tokens == 16
    assert isinstance(call.request.max_tokens, int)
    assert (call.stream, call.include_usage) == (True, True)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_either_name_of_the_limit_will_do(name: str) -> None:
    assert chat(**{name: 5}).request.max_tokens == 5


def test_two_repeat_penalties_that_differ_are_refused() -> None:
    assert refusal(repeat_penalty=1.5, repetition_penalty=1.25).param == "repetition_penalty"


def test_two_limits_that_differ_are_refused() -> None:
    error = refusal(max_tokens=5, max_completion_tokens=6)
    assert error.param == "max_completion_tokens"
    assert error.code is None


def test_completions_do_not_know_max_completion_tokens() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        complete(max_completion_tokens=5)
    assert caught.value.param == "max_completion_tokens"


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("once", ["once"]),
        (["once"], ["once"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2.0], [TokenIds((1, 2))]),
        ([[1, 2]], [TokenIds((1, 2))]),
        (["a", [3]], ["a", TokenIds((3,))]),
    ],
)
def test_a_prompt_is_text_or_tokens_or_several_of_these(
    prompt: Any, read: list[str | TokenIds]
) -> None:
    assert [request.prompt for request in complete(prompt).requests] == read


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"), (1, "prompt"), ({}, "prompt"), ("\ud800", "prompt"), (None, "prompt"),
        ([1, "a"], "prompt[1]"), ([1, -1], "prompt[1]"), ([True], "prompt[0]"),
        ([1, 2**31], "prompt[1]"), ([[1, 0.5]], "prompt[0][1]"), ([None], "prompt[0]"),
        ([{}], "prompt[0]"), (["a"] * 129, "prompt"), (["a", "\ud800"], "prompt[1]"),
    ],
)  # fmt: skip
def test_any_other_prompt_is_refused(prompt: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        complete(prompt)
    assert caught.value.param == param


def test_several_choices_have_seeds_of_their_own() -> None:
    call = complete(["a", "b"], n=2, seed=2**63 - 1)
    assert [(r.prompt, r.sampling.seed) for r in call.requests] == [
        ("a", 2**63 - 1), ("a", -(2**63)), ("b", 2**63 - 1), ("b", -(2**63)),
    ]  # fmt: skip
    assert [request.sampling.seed for request in chat(n=3).requests] == [None] * 3


@pytest.mark.parametrize(("prompt", "n", "param"), [("a", 129, "n"), (["a"] * 65, 2, "n")])
def test_there_is_a_most_of_choices(prompt: Any, n: int, param: str) -> None:
    with pytest.raises(RequestError, match="128") as caught:
        complete(prompt, n=n)
    assert caught.value.param == param


def test_probabilities_are_asked_for_in_two_ways() -> None:
    assert chat().request.logprobs is None
    assert chat(logprobs=True).request.logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).request.logprobs == 20
    assert chat(logprobs=False, top_logprobs=0).request.logprobs is None
    assert complete(logprobs=0).request.logprobs == 0
    assert complete(logprobs=5).request.logprobs == 5
    assert refusal(top_logprobs=2).param == "top_logprobs"
    assert refusal(logprobs=True, top_logprobs=21).param == "top_logprobs"


def test_roles_names_and_parts() -> None:
    call = chat(
        messages=[
            {"role": "system", "content": "s"},
            {"role": "developer", "content": "d"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "", "tool_calls": None, "refusal": None, "name": "n"},
            {"role": "tool", "content": "t", "tool_call_id": "call_1"},
        ]
    )  # fmt: skip
    assert call.request.prompt == (
        Message("system", "s"),
        Message("developer", "d"),
        Message("user", "a\nb"),
        Message("assistant", "", "n"),
        Message("tool", "t", tool_call_id="call_1"),
    )


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[0]"),
        ({"role": "user"}, "messages[0].content"),
        ({"content": "hi"}, "messages[0].role"),
        ({"role": "robot", "content": "hi"}, "messages[0].role"),
        ({"role": ["user"], "content": "hi"}, "messages[0].role"),
        ({"role": "user", "content": 1}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": "\udc00"}, "messages[0].content"),
        ({"role": "user", "content": ["hi"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0]"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]},
            "messages[0].content[0].x",
        ),
        ({"role": "user", "content": "hi", "tool_call_id": "c"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "", "tool_calls": [{}]}, "messages[0].tool_calls"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{}]},
            "messages[0].tool_calls[0].type",
        ),
        ({"role": "assistant", "tool_calls": []}, "messages[0].content"),
    ],
)
def test_a_message_that_cannot_be_taken_is_named(message: Any, param: str) -> None:
    assert refusal(messages=[message]).param == param


def test_messages_are_needed_and_bounded() -> None:
    assert refusal(messages=[]).param == "messages"
    assert refusal(messages=None).param == "messages"
    assert refusal(messages="hi").param == "messages"
    body = json.dumps(chat_body(messages=[{"role": "user", "content": ""}] * 3)).encode()
    assert parse_chat(body, max_messages=3)
    with pytest.raises(RequestTooLarge, match="max_messages") as caught:
        parse_chat(body, max_messages=2)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", True), ("temperature", "1"),
        ("temperature", 10**400), ("top_p", 1.01), ("top_p", -1), ("top_k", -2), ("top_k", 2**31),
        ("top_k", 1.5), ("seed", 2**63), ("seed", -(2**63) - 1), ("seed", False), ("seed", 1e300),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**31), ("max_tokens", "5"),
        ("stop", ""), ("stop", ["a"] * 5), ("stop", 5), ("stop", {}),
        ("stream", 1), ("stream", "true"), ("stream_options", True), ("kwaai", []), ("model", ""),
        ("model", 3), ("model", None), ("n", 0), ("n", True), ("n", 1.5), ("logprobs", 1),
        ("logprobs", "true"), ("min_p", 1.1), ("min_p", -0.1), ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1), ("frequency_penalty", "1"), ("repeat_penalty", 0),
        ("repetition_penalty", -1), ("logit_bias", []), ("logit_bias", "5"),
        ("logit_bias", {"x": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"01": 1}),
        ("logit_bias", {"٣": 1}), ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {str(n): 1 for n in range(1025)}),
    ],
)  # fmt: skip
def test_out_of_range_or_of_another_type_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(**{name: value})
    assert error.param == name
    assert error.code is None
    assert name in error.message


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("stop", ["a", ""], "stop[1]"),
        ("stop", ["a", 5], "stop[1]"),
        ("stream_options", {"include_usage": 1}, "stream_options.include_usage"),
        ("stream_options", {"other": 1}, "stream_options.other"),
        ("logit_bias", {"5": 100.5}, "logit_bias.5"),
        ("logit_bias", {"5": None}, "logit_bias.5"),
        ("kwaai", {"exact": "yes"}, "kwaai.exact"),
        ("kwaai", {"timing": 1}, "kwaai.timing"),
        ("kwaai", {"min_tier": "best"}, "kwaai.min_tier"),
        ("kwaai", {"local_blocks": -1}, "kwaai.local_blocks"),
        ("kwaai", {"max_price": 0.5}, "kwaai.max_price"),
        ("kwaai", {"max_latency_ms": -1}, "kwaai.max_latency_ms"),
        ("kwaai", {"max_first_token_ms": "1s"}, "kwaai.max_first_token_ms"),
    ],
)
def test_a_nested_field_is_named_with_its_path(name: str, value: Any, param: str) -> None:
    assert refusal(**{name: value}).param == param


@pytest.mark.parametrize("text", ["1e999", "-1e999"])
def test_a_number_too_large_for_a_float_is_out_of_range(text: str) -> None:
    body = json.dumps(chat_body(temperature=0.25)).replace("0.25", text)
    with pytest.raises(RequestError) as caught:
        parse_chat(body.encode())
    assert caught.value.param == "temperature"


@pytest.mark.parametrize("text", ["1e999", "-1e999"])
def test_a_schema_has_no_number_too_large_for_json(text: str) -> None:
    schema: dict[str, Any] = {"type": "integer", "maximum": 0.25}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for more, param in (
        ({"tools": [tool]}, "tools[0].function.parameters"),
        ({"response_format": named}, "response_format.json_schema.schema"),
    ):
        body = json.dumps(chat_body(**more)).replace("0.25", text)
        with pytest.raises(RequestError, match="too large") as caught:
            parse_chat(body.encode())
        assert caught.value.param == param


@pytest.mark.parametrize(
    "more",
    [
        {"user": "u"}, {"metadata": {"a": "b"}}, {"store": True}, {"service_tier": "auto"},
        {"safety_identifier": "s"}, {"prompt_cache_key": "p"}, {"n": 1}, {"n": 1.0},
        {"presence_penalty": 0}, {"frequency_penalty": 0.0}, {"repeat_penalty": 1},
        {"repetition_penalty": 1.0}, {"min_p": None}, {"logit_bias": {}}, {"logprobs": False},
        {"top_logprobs": 0}, {"response_format": {"type": "text"}}, {"tools": []},
        {"tool_choice": "auto"}, {"parallel_tool_calls": True}, {"stop": None}, {"stop": []},
        {"tools": None}, {"stream": None}, {"stream_options": None}, {"kwaai": None},
        {"top_k": -1}, {"kwaai": {"local_blocks": 0, "min_tier": "unknown", "knowledge": []}},
    ],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(more: dict[str, Any]) -> None:
    plain = chat().request
    assert chat(**{k: v for k, v in more.items() if k != "top_k"}).request == plain
    assert chat(**more).request.sampling.top_k == (0 if "top_k" in more else 40)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"functions": [{}]}, "functions"), ({"function_call": {"name": "f"}}, "function_call"),
        ({"tools": [TOOL | {"type": "custom"}]}, "tools[0].type"),
        ({"tools": [TOOL], "logprobs": True}, "logprobs"),
        ({"temprature": 1}, "temprature"),
        ({"temprature": None}, "temprature"), ({"": 1}, ""), ({"x\ud800": 1}, "x\ud800"),
        ({"kwaai": {"knowledge": ["notes"]}}, "kwaai.knowledge"),
        ({"kwaai": {"exakt": 1}}, "kwaai.exakt"),
        ({"prompt": "hi"}, "prompt"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_unsupported_by_name(
    more: dict[str, Any], param: str
) -> None:
    error = refusal(**more)
    assert isinstance(error, UnsupportedParameter)
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize("strict", [None, False, True])
def test_a_form_of_the_answer_is_a_schema(strict: bool | None) -> None:
    given: dict[str, Any] = {"type": "object", "properties": {"b": {}, "a": {"const": "ü\ud800"}}}
    form = {"name": "x-1", "description": "d", "schema": given, "strict": strict}
    call = chat(response_format={"type": "json_schema", "json_schema": form}, n=2)
    for request in call.requests:
        assert request.schema is not None
        assert json.loads(request.schema) == given
        assert request.schema.index('"b"') < request.schema.index('"a"')
        request.schema.encode()


def test_any_object_is_a_schema_and_any_text_is_none() -> None:
    for form in {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x"}}:
        assert json.loads(chat(response_format=form).request.schema or "") == {"type": "object"}
    assert chat(response_format={"type": "text"}).request.schema is None
    assert chat(response_format=None).request.schema is None


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ("json_object", ""), ({}, ".type"), ({"type": 3}, ".type"), ({"type": "xml"}, ".type"),
        ({"type": "json_object", "schema": {}}, ".schema"),
        ({"type": "text", "json_schema": {}}, ".json_schema"),
        ({"type": "json_schema"}, ".json_schema"),
        ({"type": "json_schema", "json_schema": []}, ".json_schema"),
        ({"type": "json_schema", "json_schema": {}}, ".json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a b"}}, ".json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a" * 65}}, ".json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
         ".json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": 1}},
         ".json_schema.strict"),
        ({"type": "json_schema", "json_schema": {"name": "a", "shema": {}}}, ".json_schema.shema"),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused_by_name(form: Any, param: str) -> None:
    assert refusal(response_format=form).param == f"response_format{param}"


ADD = {"type": "function", "function": {"name": "add"}}


def test_tools_may_all_be_called_unless_something_else_is_said() -> None:
    more = {"name": "add", "description": "It adds.", "strict": True,
            "parameters": {"type": "object", "b": 1, "a": 2}}  # fmt: skip
    tools = chat(tools=[TOOL, {"type": "function", "function": more}], n=2).requests[1].tools
    assert tools is not None
    get, add = tools.shown
    assert (get.name, get.description) == ("get", None)
    assert json.loads(get.parameters) == {"type": "object", "properties": {}}
    assert (add.name, add.description) == ("add", "It adds.")
    assert add.parameters == json.dumps(more["parameters"])
    assert (tools.allowed, tools.required, tools.parallel) == ((0, 1), False, True)


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    ("choice", "numbers", "required"),
    [
        (None, (0, 1), False), ("auto", (0, 1), False), ("required", (0, 1), True),
        (ADD, (1,), True), (allowed("auto", "add"), (1,), False),
        (allowed("required", "add", "get", "add"), (0, 1), True),
    ],
)  # fmt: skip
def test_what_may_be_called_is_chosen(choice: Any, numbers: Any, required: bool) -> None:
    call = chat(tools=[TOOL, ADD], tool_choice=choice, parallel_tool_calls=False)
    tools = call.request.tools
    assert tools is not None
    assert (tools.allowed, tools.required, tools.parallel) == (numbers, required, False)
    assert len(tools.shown) == 2


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []}, {"tools": [], "tool_choice": "auto"}, {"tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": "none"}, {"parallel_tool_calls": True},
        {"tools": [TOOL], "tool_choice": "none", "logprobs": True},
    ],
)  # fmt: skip
def test_no_tools_are_none(more: dict[str, Any]) -> None:
    assert chat(**more).request.tools is None


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": {}}, "tools"), ({"tools": [3]}, "tools[0]"), ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [TOOL | {"x": 1}]}, "tools[0].x"),
        ({"tools": [function(name="a b")]}, "tools[0].function.name"),
        ({"tools": [function(description=3)]}, "tools[0].function.description"),
        ({"tools": [function(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [function(strict=1)]}, "tools[0].function.strict"),
        ({"tools": [function(x=1)]}, "tools[0].function.x"),
        ({"tools": [function(name=f"f{i}") for i in range(129)]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": ADD}, "tool_choice.function.name"),
        ({"tools": [TOOL], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"tools": [TOOL], "tool_choice": allowed("no", "get")}, "tool_choice.allowed_tools.mode"),
        ({"tools": [TOOL], "tool_choice": allowed("auto", "x")},
         "tool_choice.allowed_tools.tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"), ({"tool_choice": ADD}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)  # fmt: skip
def test_broken_tools_are_refused_by_name(more: dict[str, Any], param: str) -> None:
    assert refusal(**more).param == param


def test_calls_that_were_made_arrive_with_their_results() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "so", "tool_calls": []},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    assert chat(messages=turns).request.prompt == (
        Message("user", "hi"),
        Message("assistant", "", None, (ToolCall("c1", "get", '{"a": 1}'),)),
        Message("assistant", "so"),
        Message("tool", "42", tool_call_id="c1"),
    )


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (3, ""), ({}, ".type"), ({"type": "custom"}, ".type"), ({"type": "function"}, ".id"),
        ({"type": "function", "id": "c"}, ".function"),
        ({"type": "function", "id": "c", "function": {"name": "f"}}, ".function.arguments"),
        ({"type": "function", "id": "c", "function": {"name": "f", "arguments": {}}},
         ".function.arguments"),
        ({"type": "function", "id": "c", "function": {"name": "f", "arguments": "[]"}},
         ".function.arguments"),
        ({"type": "function", "id": "c", "function": {"name": "f", "arguments": "[" * 10000}},
         ".function.arguments"),
        ({"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}", "x": 1}},
         ".function.x"),
    ],
)  # fmt: skip
def test_a_broken_call_is_refused_by_name(call: Any, param: str) -> None:
    turns = [{"role": "assistant", "tool_calls": [call]}]
    assert refusal(messages=turns).param == f"messages[0].tool_calls[0]{param}"


@pytest.mark.parametrize("more", [{"suffix": "x"}, {"best_of": 2}, {"best_of": 2, "n": 3}])
def test_completions_refuse_what_they_do_not_do(more: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        complete(**more)
    assert caught.value.param == next(iter(more))


def test_the_best_of_all_answers_are_all_answers() -> None:
    assert complete(best_of=3, n=3).n == complete(best_of=1, n=3).n == 3


def test_a_completion_may_have_no_tokens_and_an_echo() -> None:
    call = complete(["a", [1, 2]], max_tokens=0, echo=True, logprobs=1)
    assert [request.echo for request in call.requests] == [True, True]
    assert {request.max_tokens for request in call.requests} == {0}
    assert not complete().request.echo
    assert refusal(max_tokens=0).param == "max_tokens"
    assert refusal(echo=True).param == "echo"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"\xff{}", "not UTF-8: see byte 0"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1, "b": 2, "a": 3}', "“a” is given twice"),
        (b'{"a": {"b": 1, "b": 2}}', "“b” is given twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON|nested"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested"),
    ],
)
def test_json_is_strict(body: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        load_object(body)


def test_nesting_up_to_the_limit_is_taken() -> None:
    inner = MAX_DEPTH - 1
    assert load_object(b'{"a":' + b"[" * inner + b"]" * inner + b"}")


def test_a_long_name_is_not_shown_back_in_full() -> None:
    error = refusal(**{"x" * 10_000: 1})
    assert len(error.message) < 200


NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "stream",
        "stream_options",
        "kwaai",
        "n",
        "tools",
        "logprobs",
        "user",
        "role",
        "content",
        "type",
        "text",
        "exact",
        "include_usage",
        "name",
        "tool_calls",
        "response_format",
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None))
    | st.sampled_from(["user", "text", "hi"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(), inner, max_size=6)
    ),
    max_leaves=25,
)
BODIES = st.dictionaries(NAMES, JSON, max_size=8)
VALID = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.just([{"role": "user", "content": "hi"}])}
)


def taken_or_refused(body: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        try:
            assert isinstance(parse(body), Call)
        except RequestError as error:
            assert error.message
            assert error.status in (400, 413)


@given(st.one_of(JSON, BODIES, st.builds(dict.__or__, VALID, BODIES)))
def test_any_json_is_a_call_or_a_refusal(value: Any) -> None:
    taken_or_refused(json.dumps(value).encode())


@given(st.builds(dict.__or__, BODIES, VALID))
def test_a_refusal_of_an_object_names_the_field(body: dict[str, Any]) -> None:
    try:
        parse_chat(json.dumps(body).encode())
    except RequestError as error:
        assert error.param is not None
        assert error.param.split(".")[0].split("[")[0] in body


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_call_or_a_refusal(body: bytes) -> None:
    taken_or_refused(body)
