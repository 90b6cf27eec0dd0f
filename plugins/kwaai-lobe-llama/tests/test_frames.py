"""The frames between node and worker: every job survives the trip, and no garbage escapes."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import (
    CallPiece,
    Logprob,
    Message,
    RequestError,
    Sampling,
    TokenIds,
    TokenLogprob,
    Tool,
    ToolCall,
    Tools,
)
from kwaai_lobe_llama.answers import (
    Failure,
    FailureCode,
    Finish,
    decode_calls,
    decode_failure,
    decode_finish,
    decode_logprobs,
    decode_ready,
    decode_text,
    encode_calls,
    encode_failure,
    encode_finish,
    encode_logprobs,
    encode_text,
)
from kwaai_lobe_llama.frames import HEADER, MAX_PAYLOAD, FrameError, FrameReader, Kind, frame
from kwaai_lobe_llama.jobs import (
    Job,
    Question,
    decode_job,
    decode_question,
    encode_job,
    encode_question,
)

texts = st.text(max_size=40)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    texts,
    st.none() | st.text(min_size=1, max_size=9),
    st.lists(st.builds(ToolCall, texts, texts, texts), max_size=2).map(tuple),
    st.none() | st.text(min_size=1, max_size=9),
)
tools = st.builds(
    Tools,
    st.lists(st.builds(Tool, texts, st.none() | texts, texts), max_size=3).map(tuple),
    st.lists(st.integers(0, 127), max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
)
unit = st.floats(0, 1, width=32)
samplings = st.builds(
    Sampling,
    st.floats(0, 2, width=32),
    unit,
    st.integers(0, 1000),
    st.none() | st.integers(0, 2**32 - 2),
    unit,
    st.floats(-2, 2, width=32),
    st.floats(-2, 2, width=32),
    st.floats(0.5, 2, width=32),
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-100, 100, width=32)), max_size=5).map(
        tuple
    ),
)
tokens = st.lists(st.integers(0, 2**31 - 1), max_size=9).map(tuple).map(TokenIds)
jobs = st.builds(
    Job,
    st.lists(messages, max_size=5).map(tuple) | texts | tokens,
    samplings,
    st.lists(texts, max_size=4).map(tuple),
    st.none() | st.integers(0, 2**31 - 1),
    st.none() | st.integers(0, 254),
    st.booleans(),
    st.booleans(),
    st.none() | texts,
    st.none() | tools,
)
logs = st.floats(max_value=0)
logprobs = st.builds(
    TokenLogprob,
    st.binary(max_size=9),
    st.none() | logs,
    st.lists(st.builds(Logprob, st.binary(max_size=9), logs), max_size=3).map(tuple),
)


@given(st.lists(logprobs, max_size=4).map(tuple))
def test_probabilities_survive(told: tuple[TokenLogprob, ...]) -> None:
    assert decode_logprobs(encode_logprobs(told)) == told


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"3", b"[3]", b"[[1, 2, 3]]", b'[["a", "b", []]]', rb'[["\u0100", 1, []]]',
        b"[" * 100_000, b'[["a", 1, [["b"]]]]', b'[["a", 1, 7]]',
        b'[["a", 1%s, []]]' % (b"0" * 400),
    ],
)  # fmt: skip
def test_broken_probabilities_are_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        decode_logprobs(payload)


pieces = st.builds(CallPiece, st.integers(0, 99), st.none() | texts, texts)


@given(st.lists(pieces, max_size=4).map(tuple))
def test_pieces_of_calls_survive(calls: tuple[CallPiece, ...]) -> None:
    assert decode_calls(encode_calls(calls)) == calls


@pytest.mark.parametrize(
    "payload",
    [b"", b"3", b"[3]", b"[[1]]", b'[["a", null, ""]]', b'[[1e999, "", ""]]', b"[" * 100_000],
)
def test_broken_pieces_of_calls_are_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        decode_calls(payload)


@given(jobs)
def test_a_job_survives(job: Job) -> None:
    assert decode_job(encode_job(job)) == job


questions = st.builds(
    Question,
    st.none() | st.lists(messages, max_size=5).map(tuple) | texts | tokens,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@given(questions)
def test_a_question_survives(question: Question) -> None:
    assert decode_question(encode_question(question)) == question


@given(st.binary(max_size=99))
def test_a_broken_question_is_refused(payload: bytes) -> None:
    try:
        decode_question(payload)
    except FrameError:
        pass


@given(st.integers(0, 2**64 - 1))
def test_a_seed_of_any_size_is_never_llama_cpps_word_for_random(seed: int) -> None:
    sent = decode_job(encode_job(Job("x", Sampling(seed=seed)))).sampling.seed
    assert sent is not None and 0 <= sent < 0xFFFFFFFF


def test_small_seeds_stay_what_they_are() -> None:
    seeds = [decode_job(encode_job(Job("x", Sampling(seed=n)))).sampling.seed for n in range(99)]
    assert seeds == list(range(99))


@pytest.mark.parametrize(
    ("job", "param"),
    [
        (Job("x", Sampling(temperature=1e39)), "temperature"),
        (Job("x", Sampling(temperature=nan)), "temperature"),
        (Job("x", Sampling(top_p=-inf)), "top_p"),
        (Job("x", Sampling(top_k=2**31)), "top_k"),
        (Job("x", Sampling(min_p=nan)), "min_p"),
        (Job("x", Sampling(presence_penalty=1e10)), "presence_penalty"),
        (Job("x", Sampling(frequency_penalty=inf)), "frequency_penalty"),
        (Job("x", Sampling(repeat_penalty=nan)), "repeat_penalty"),
        (Job("x", Sampling(repeat_penalty=0)), "repeat_penalty"),
        (Job("x", Sampling(logit_bias=((2**31, 1.0),))), "logit_bias"),
        (Job("x", Sampling(logit_bias=((1, nan),))), "logit_bias"),
        (Job("x", Sampling(logit_bias=((1, 1.0),) * 65536)), "logit_bias"),
        (Job(TokenIds((2**31,))), "prompt"),
        (Job(TokenIds((-1,))), "prompt"),
        (Job("x", logprobs=255), "logprobs"),
        (Job("x", logprobs=-1), "logprobs"),
        (Job("x", max_tokens=2**31), "max_tokens"),
        (Job("x", stop=("a",) * 256), "stop"),
    ],
)
def test_a_number_without_room_in_a_frame_is_refused_by_name(job: Job, param: str) -> None:
    with pytest.raises(RequestError, match=param) as caught:
        encode_job(job)
    assert caught.value.param == param


def test_the_largest_numbers_survive() -> None:
    job = Job("x", Sampling(top_k=2**31 - 1), ("a",) * 255, 2**31 - 1)
    decoded = decode_job(encode_job(job))
    assert (decoded.sampling.top_k, decoded.stop, decoded.max_tokens) == (
        job.sampling.top_k,
        job.stop,
        job.max_tokens,
    )


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_ready_without_an_object_is_no_frame(payload: bytes) -> None:
    with pytest.raises(FrameError, match="READY"):
        decode_ready(payload)


@given(st.integers(0, 2**32 - 1), texts)
def test_text_survives(tokens: int, text: str) -> None:
    assert decode_text(encode_text(tokens, text)) == (tokens, text)


@given(
    st.sampled_from(["stop", "length", "tool_calls"]),
    st.binary(max_size=32),
    st.floats(min_value=0, allow_infinity=False),
)
def test_a_finish_survives(reason: str, digest: bytes, took: float) -> None:
    finish = Finish(reason, 7, 8, 9, digest, took, 2 * took if took < 1e300 else 0.0)
    assert decode_finish(encode_finish(finish)) == finish


@pytest.mark.parametrize("took", [-1.0, float("inf"), float("nan")])
def test_an_answer_takes_a_time_that_there_is(took: float) -> None:
    for times in ((took, 1.0), (1.0, took)):
        with pytest.raises(FrameError, match="ms of waiting"):
            decode_finish(encode_finish(Finish("stop", 7, 8, 9, b"", *times)))


@given(st.sampled_from(FailureCode), texts, texts)
def test_a_failure_survives(code: FailureCode, message: str, param: str) -> None:
    failure = Failure(code, message, 900, 512, param)
    assert decode_failure(encode_failure(failure)) == failure


@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=50))),
    st.integers(1, 17),
)
def test_frames_are_cut_wherever_the_bytes_are(
    frames: list[tuple[Kind, int, bytes]], step: int
) -> None:
    data = b"".join(frame(*parts) for parts in frames)
    reader = FrameReader()
    pieces = (data[i : i + step] for i in range(0, len(data), step))
    assert [parts for piece in pieces for parts in reader.feed(piece)] == frames


def test_an_endless_frame_is_refused_before_it_is_collected() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        list(FrameReader().feed(HEADER.pack(MAX_PAYLOAD + 1, Kind.TEXT, 1)))


@given(
    st.sampled_from([decode_job, decode_ready, decode_text, decode_finish, decode_failure]),
    st.binary(max_size=200),
)
def test_garbage_is_a_frame_error_or_a_value(decode: object, payload: bytes) -> None:
    try:
        assert decode(payload) is not None  # type: ignore[operator]
    except FrameError:
        pass


@given(st.binary(max_size=200))
def test_a_stream_of_garbage_is_a_frame_error_or_frames(data: bytes) -> None:
    try:
        assert all(isinstance(kind, Kind) for kind, _, _ in FrameReader().feed(data))
    except FrameError:
        pass
