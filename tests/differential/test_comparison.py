"""The comparison with llama-server finds what differs, and lets nothing pass that is not named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytest

from tests.differential.allowed import ALLOWED, Allowed
from tests.differential.answers import Answer, read_answer
from tests.differential.cases import CASES, TEXT, Case, cases_for, chat
from tests.differential.comparison import TOLERANCE, Difference, differences
from tests.differential.report import Compared, Report, judged

TOKEN: dict[str, Any] = {
    "token": "Hi",
    "bytes": [72, 105],
    "logprob": -0.5,
    "top_logprobs": [
        {"token": "Hi", "bytes": [72, 105], "logprob": -0.5},
        {"token": "Ho", "bytes": [72, 111], "logprob": -1.5},
    ],
}
WHOLE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi"},
            "logprobs": {"content": [TOKEN]},
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
}
CASE = chat("chat", "a greeting", "Hi")


def whole(document: object, status: int = 200) -> Answer:
    return read_answer(status, "application/json", json.dumps(document).encode())


def streamed(*chunks: object, done: bool = True) -> Answer:
    events = [*map(json.dumps, chunks), *(["[DONE]"] if done else [])]
    body = "".join(f": ping\n\ndata: {event}\n\n" for event in events)
    return read_answer(200, "text/event-stream; charset=utf-8", body.encode())


def chunk(delta: object, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


STREAM = (chunk({"role": "assistant", "content": ""}), chunk({"content": "Hi"}), chunk({}, "stop"))


def test_an_answer_does_not_differ_from_itself() -> None:
    assert differences(whole(WHOLE), whole(WHOLE)) == ()
    assert differences(streamed(*STREAM), streamed(*STREAM)) == ()


def test_ids_and_times_and_pieces_of_a_stream_may_be_any() -> None:
    assert differences(whole(WHOLE), whole(WHOLE | {"id": "2", "created": 99})) == ()
    pieces = (STREAM[0], chunk({"content": "H"}), chunk({"content": "i"}), STREAM[2])
    assert differences(streamed(*STREAM), streamed(*pieces)) == ()


def set_text(document: dict[str, Any]) -> None:
    document["choices"][0]["message"]["content"] = "Ho"


def set_ending(document: dict[str, Any]) -> None:
    document["choices"][0]["message"]["content"] += "\ufffd"


def set_finish(document: dict[str, Any]) -> None:
    document["choices"][0]["finish_reason"] = "length"


def set_count(document: dict[str, Any]) -> None:
    document["usage"]["completion_tokens"] = 1


def set_cached(document: dict[str, Any]) -> None:
    document["usage"]["prompt_tokens_details"]["cached_tokens"] = 2


def set_object(document: dict[str, Any]) -> None:
    document["object"] = "text_completion"


def drop_key(document: dict[str, Any]) -> None:
    del document["usage"]["total_tokens"]


def add_key(document: dict[str, Any]) -> None:
    document["choices"][0]["message"]["refusal"] = None


def set_kind(document: dict[str, Any]) -> None:
    document["created"] = "now"


def add_choice(document: dict[str, Any]) -> None:
    document["choices"].append(document["choices"][0] | {"index": 1})


def set_token(document: dict[str, Any]) -> None:
    document["choices"][0]["logprobs"]["content"][0]["bytes"] = [72, 111]


def set_logprob(document: dict[str, Any]) -> None:
    document["choices"][0]["logprobs"]["content"][0]["logprob"] -= 2 * TOLERANCE


def set_top(document: dict[str, Any]) -> None:
    document["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["bytes"] = [72, 97]


def drop_top(document: dict[str, Any]) -> None:
    document["choices"][0]["logprobs"]["content"][0]["top_logprobs"].pop()


@pytest.mark.parametrize(
    ("change", "aspect", "where"),
    [
        (set_text, "text", "0"),
        (set_ending, "ending", "0"),
        (set_finish, "finish", "0"),
        (set_count, "usage", "completion_tokens"),
        (set_cached, "usage", "cached_tokens"),
        (set_object, "value", "object"),
        (drop_key, "key", "usage.total_tokens"),
        (add_key, "key", "choices.#.message.refusal"),
        (set_kind, "key", "created"),
        (add_choice, "choices", ""),
        (set_token, "logprobs", "0 token 0"),
        (set_logprob, "logprobs", "0 token 0"),
        (set_top, "logprobs", "0 top 0"),
        (drop_top, "logprobs", "0 top 0"),
    ],
)
def test_every_difference_is_found_on_either_side(
    change: Callable[[dict[str, Any]], None], aspect: str, where: str
) -> None:
    other = copy.deepcopy(WHOLE)
    change(other)
    for pair in ((WHOLE, other), (other, WHOLE)):
        (found,) = differences(*map(whole, pair))
        assert (found.aspect, found.where) == (aspect, where)


def test_what_is_missing_is_told_once_and_not_for_all_that_is_in_it() -> None:
    more = WHOLE | {"timings": {"prompt_ms": 1.0, "parts": [{"ms": 1}]}}
    assert differences(whole(WHOLE), whole(more)) == (
        Difference("key", "timings", "absent", "object"),
    )


def test_answers_with_another_status_are_not_compared_further() -> None:
    assert differences(whole({"error": {}}, 400), whole(WHOLE)) == (
        Difference("status", "", "400", "200"),
    )


@pytest.mark.parametrize(
    ("other", "where"),
    [
        (streamed(*STREAM, done=False), "the last event"),
        (streamed(*STREAM[1:]), "the first delta"),
        (streamed(*STREAM, STREAM[2]), "chunks with a finish_reason"),
        (streamed(*STREAM[:2], STREAM[2] | {"id": "2"}), "ids"),
        (streamed(*STREAM, {**STREAM[2], "choices": [], "usage": {"a": 1}}), "usage"),
    ],
)
def test_streams_have_one_form(other: Answer, where: str) -> None:
    found = differences(streamed(*STREAM), other)
    assert where in [one.where for one in found if one.aspect == "form"]


def test_both_ways_of_writing_probabilities_say_the_same() -> None:
    older = {
        "tokens": ["Hi"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"Ho": -1.5, "Hi": -0.5}],
        "text_offset": [0],
    }
    choice = {"index": 0, "text": "Hi", "finish_reason": "stop"}
    one, other = (
        whole({"choices": [choice | {"logprobs": told}]}) for told in (older, {"content": [TOKEN]})
    )
    assert {found.aspect for found in differences(one, other)} == {"key"}
    older["token_logprobs"] = [-0.6]
    changed = whole({"choices": [choice | {"logprobs": older}]})
    assert "logprobs" in {found.aspect for found in differences(changed, other)}


def test_the_bytes_of_a_token_may_stand_in_the_next_one() -> None:
    def told(*tokens: tuple[bytes, float]) -> Answer:
        content = [{"bytes": [*t], "logprob": p, "top_logprobs": []} for t, p in tokens]
        choice = {
            "index": 0,
            "text": "é",
            "finish_reason": "stop",
            "logprobs": {"content": content},
        }
        return whole({"choices": [choice]})

    ours, end = ((b"\xc3", -1.0), (b"\xa9", -2.0)), (b"", -3.0)
    (split,) = differences(told(*ours), told((b"\xc3\xa9", -2.0)))
    assert split.where == "0 split 0"
    _, wrong = differences(told(*ours), told((b"\xc3\xa9", -1.0)))
    assert wrong.where == "0 token 0"
    assert [one.where for one in differences(told(*ours), told(*ours, end))] == ["0 length"]
    assert [one.where for one in differences(told(*ours, end), told(*ours))] == ["0 length"]


def report(*pairs: tuple[Answer, Answer], allowed: Sequence[Allowed] = ()) -> Report:
    made = Report(allowed, whole=True)
    for ours, theirs in pairs:
        made.add(compared(ours, theirs, allowed))
    return made


def compared(ours: Answer, theirs: Answer, allowed: Sequence[Allowed] = ()) -> Compared:
    return judged("m", CASE, ours, differences(ours, theirs), allowed)


def changed(change: Callable[[dict[str, Any]], None]) -> Answer:
    other = copy.deepcopy(WHOLE)
    change(other)
    return whole(other)


def test_one_difference_that_nobody_named_is_one_too_many() -> None:
    same = (whole(WHOLE), whole(WHOLE))
    assert report(*[same] * 99).good
    bad = report(*[same] * 99, (whole(WHOLE), changed(set_count)))
    assert not bad.good
    assert "NOT good" in bad.table() and bad.document()["wrong"] == 1


def test_two_texts_of_a_hundred_may_differ_and_not_three() -> None:
    same, other = (whole(WHOLE), whole(WHOLE)), (whole(WHOLE), changed(set_text))
    assert report(*[same] * 98, *[other] * 2).good
    assert not report(*[same] * 97, *[other] * 3).good
    assert not report().good


def test_of_another_text_only_what_speaks_of_it_is_left_out() -> None:
    def and_count(document: dict[str, Any]) -> None:
        set_text(document)
        set_count(document)

    def and_key(document: dict[str, Any]) -> None:
        set_text(document)
        drop_key(document)

    same = [(whole(WHOLE), whole(WHOLE))] * 99
    assert report(*same, (whole(WHOLE), changed(and_count))).good
    assert not report(*same, (whole(WHOLE), changed(and_key))).good


def test_what_is_named_may_differ_there_and_only_there() -> None:
    extra = Allowed("refusal", "…", "key", "choices.#.message.refusal", ours="null")
    assert report((changed(add_key), whole(WHOLE)), allowed=[extra]).good
    assert not report((whole(WHOLE), changed(add_key)), allowed=[extra]).good
    elsewhere = Allowed("refusal", "…", "key", "choices.#.message.refusal", cases=("text/*",))
    assert not report((changed(add_key), whole(WHOLE)), allowed=[elsewhere]).good


def test_what_was_named_and_never_occurred_is_told() -> None:
    allowed = [Allowed("refusal", "…", "key", "*.refusal"), Allowed("moon", "…", "key", "moon")]
    made = report((changed(add_key), whole(WHOLE)), allowed=allowed)
    assert [one.name for one in made.unused] == ["moon"]
    assert "| moon | unused |" in made.table() and "| refusal | 1 |" in made.table()


def test_cases_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) >= 50


@pytest.mark.parametrize(
    "case", [case for case in CASES if not isinstance(case.body, bytes)], ids=str
)
def test_a_case_says_which_model_it_asks(case: Case) -> None:
    assert json.loads(case.content("m"))["model"] in ("m", "no such model")


def test_models_are_asked_by_what_their_template_has() -> None:
    bare, tools = cases_for(CASES, "continues"), cases_for(CASES, "calls")
    assert [case.category for case in bare if case.path != TEXT] == ["template"]
    assert {case.category for case in tools} == {"tools"}
    assert len(cases_for(CASES, "talks")) + 1 + len(tools) == len(CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case.category == "form"], ids=str)
def test_llama_server_is_given_a_form_as_a_grammar(case: Case) -> None:
    ours, theirs = json.loads(case.content("m")), json.loads(case.content("m", grammar=True))
    assert "root ::=" in theirs.pop("grammar")
    del ours["response_format"]
    assert ours == theirs


@pytest.mark.parametrize("one", ALLOWED, ids=lambda one: f"{one.name}, {one.aspect} {one.where}")
def test_a_category_has_a_reason_is_narrow_and_covers_some_case(one: Allowed) -> None:
    assert len(one.reason) > 20
    assert one.aspect not in ("text", "finish", "choices", "value")
    assert one.where not in ("choices.*", "usage.*")
    assert one.where != "*" or one.aspect == "ending"
    for pattern in one.cases:
        assert any(fnmatchcase(str(case), pattern) for case in CASES), pattern


def test_a_character_that_is_cut_in_two_may_end_a_text_here_and_not_there() -> None:
    pair = (changed(set_ending), whole(WHOLE))
    assert report(pair, allowed=ALLOWED).good
    assert not report(pair[::-1], allowed=ALLOWED).good
