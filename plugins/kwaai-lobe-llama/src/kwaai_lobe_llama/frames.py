"""The binary frames between a node and its llama.cpp worker, over a socket pair.

A frame is a header ``<IBxxxI`` (payload bytes, kind, request) and a payload. Integers are
little-endian, texts UTF-8. Both ends are of one installation, so nothing is negotiated; but what a
broken worker sends is checked all the same, and ends that worker and never the node.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from enum import IntEnum

from kwaai_core import (
    CallPiece,
    GenerateRequest,
    Logprob,
    Message,
    Prompt,
    RequestError,
    Sampling,
    TokenIds,
    TokenLogprob,
    Tool,
    ToolCall,
    Tools,
)

HEADER = struct.Struct("<IBxxxI")
MAX_PAYLOAD = 1 << 26


class Kind(IntEnum):
    """What a frame is. The node sends those below 10 and TOKENISE, the worker the others."""

    GENERATE = 1
    CANCEL = 2
    LINK = 3  # JSON: a peer, and how to speak over the socket that was handed over before
    UNLINK = 4
    ROUTE = 5  # JSON: the places over which a session goes from now on
    DRAIN = 6  # take no more sessions, and ask for those there are to be moved
    HOLD = 7  # JSON: slices to load as units
    HEAD = 8  # JSON: the head to load
    RESERVE = 9  # JSON: for how many more sessions of which peers room is to be kept
    READY = 10  # JSON: what was loaded, and how
    LOADING = 11  # a line about progress
    FATAL = 12  # why the worker cannot serve
    ACCEPTED = 13  # a request is queued
    TEXT = 14
    FINISH = 15
    FAILED = 16  # a request is refused or has failed; the worker lives
    LINKED = 17  # the handshake of a link is done
    LOST = 18  # a link is of no use any more; the payload says why
    ASK = 19  # JSON: a session needs a route, or another one
    LOAD = 20  # JSON: how busy the units are
    TIMINGS = 21  # JSON: what each hop of an answer took; before its FINISH
    LOADED = 22  # JSON: what HOLD or HEAD has loaded
    UNFIT = 23  # what HOLD or HEAD asked for cannot be loaded, or not exactly; says why
    LOGPROBS = 24  # JSON: the probabilities of the tokens that the next TEXT covers
    CALLS = 25  # JSON: pieces of calls of tools, which come with the next TEXT
    TOKENISE = 30  # of the node: a question about texts and tokens
    TOKENISED = 31  # JSON: the answer to it


class FailureCode(IntEnum):
    """Why a request failed, as far as the API has to tell the cases apart."""

    BAD_REQUEST = 1
    CONTEXT_LENGTH = 2
    UNSUPPORTED = 3


class FrameError(Exception):
    """Bytes that are no frame of this protocol."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is asked to generate. ``logprobs``: tell the probabilities of tokens, and of so
    many of the likeliest; ``digest``: hash the logits of every sampled row; ``echo``: tell the
    prompt first, as TEXT of no tokens, and the probabilities of its tokens too. ``schema`` and
    ``tools`` are those of a :class:`kwaai_core.GenerateRequest`."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None
    digest: bool = False
    echo: bool = False
    schema: str | None = None
    tools: Tools | None = None


def job_of(request: GenerateRequest) -> Job:
    """The job that a request is to a worker that has its model."""
    return Job(
        request.prompt,
        request.sampling,
        request.stop,
        request.max_tokens,
        request.logprobs,
        echo=request.echo,
        schema=request.schema,
        tools=request.tools,
    )


@dataclass(frozen=True, slots=True)
class Question:
    """What TOKENISE asks: for the tokens of a text or of a conversation, which is ``opened`` for an
    answer, with those that the tokeniser adds where ``special``, and how they are written where
    ``shown``; or for the text of tokens; or, without a prompt, for what the tokeniser is."""

    prompt: Prompt | None = None
    special: bool = True
    opened: bool = True
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended; ``digest`` is 32 bytes of SHA-256, or empty where none was asked."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed; the counts are those of the prompt and the context, or 0. ``param`` is
    the field at fault where that is not the prompt."""

    code: FailureCode
    message: str
    prompt_tokens: int = 0
    context_tokens: int = 0
    param: str = ""


# temperature, top_p, top_k, seed, max_tokens, flags, stops, biases, min_p and three penalties,
# how many likely tokens are told
_JOB = struct.Struct("<ffiIiBBHffffBxxx")
_BIAS = struct.Struct("<if")
_FINISH = struct.Struct("<BxxxIII")
_FAILURE = struct.Struct("<BxxxII")
_COUNT = struct.Struct("<I")
_REASONS = ("stop", "length", "tool_calls")
_CHAT, _SEEDED, _DIGEST, _BOUNDED, _TOKENS, _SHAPED, _ECHO = 1, 2, 4, 8, 16, 32, 64
_NO_LOGPROBS = 255
_LARGEST = 2**31 - 1  # of a job's numbers; llama.cpp's are of 32 bits
_MOST_STOPS = 255
_MOST_BIASES = 65535


def frame(kind: Kind, request: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(len(payload), kind, request) + payload


class FrameReader:
    """Cuts a stream of bytes into frames; sans-I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, int, bytes]]:
        """The frames that ``data`` completes, as (kind, request, payload).

        Raises :class:`FrameError` where the bytes are no frame; the stream is then unusable.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= HEADER.size:
                length, kind, request = HEADER.unpack_from(self._buffer, start)
                if length > MAX_PAYLOAD:
                    raise FrameError(f"a frame of {length} bytes is over the limit {MAX_PAYLOAD}")
                end = start + HEADER.size + length
                if end > len(self._buffer):
                    return
                yield _kind(kind), request, bytes(self._buffer[start + HEADER.size : end])
                start = end
        finally:
            del self._buffer[:start]


def _kind(value: int) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise FrameError(f"there is no frame of kind {value}") from None


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return _COUNT.pack(len(data)) + data


class _Fields:
    """Reads a payload front to back."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def unpack(self, layout: struct.Struct) -> tuple[int | float, ...]:
        try:
            values = layout.unpack_from(self._payload, self._at)
        except struct.error as error:
            raise FrameError(f"a payload ends early: {error}") from None
        self._at += layout.size
        return values

    def count(self) -> int:
        return int(self.unpack(_COUNT)[0])

    def text(self) -> str:
        end = self._at + self.count() + _COUNT.size
        if end > len(self._payload):
            raise FrameError("a text goes beyond its payload")
        data = self._payload[self._at : end]
        self._at = end
        return data.decode("utf-8", "replace")

    def rest(self) -> bytes:
        return self._payload[self._at :]


def encode_job(job: Job) -> bytes:
    """The payload of GENERATE; :class:`RequestError` where a number has no room in it."""
    _check(job)
    sampling, seed = job.sampling, job.sampling.seed
    flags = _SEEDED * (seed is not None) | _DIGEST * job.digest
    flags |= _CHAT * isinstance(job.prompt, tuple) | _TOKENS * isinstance(job.prompt, TokenIds)
    flags |= _BOUNDED * (job.max_tokens is not None) | _ECHO * job.echo
    flags |= _SHAPED * (job.schema is not None or job.tools is not None)
    head = _JOB.pack(
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        _fold(seed) if seed is not None else 0,
        job.max_tokens or 0,
        flags,
        len(job.stop),
        len(sampling.logit_bias),
        sampling.min_p,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repeat_penalty,
        _NO_LOGPROBS if job.logprobs is None else job.logprobs,
    )
    parts = [head, *(_BIAS.pack(*bias) for bias in sampling.logit_bias), *map(_text, job.stop)]
    if isinstance(job.prompt, str):
        parts.append(_text(job.prompt))
    elif isinstance(job.prompt, TokenIds):
        ids = job.prompt.ids
        parts += [_COUNT.pack(len(ids)), struct.pack(f"<{len(ids)}I", *ids)]
    else:
        parts.append(_COUNT.pack(len(job.prompt)))
        for message in job.prompt:
            parts += [_text(message.role), _text(message.name or ""), _text(message.content)]
            parts += [_text(message.tool_call_id or ""), _text(_calls(message.tool_calls))]
    if flags & _SHAPED:
        parts.append(_text(json.dumps([job.schema, job.tools and astuple(job.tools)])))
    return b"".join(parts)


def _calls(calls: Sequence[ToolCall]) -> str:
    return json.dumps([astuple(call) for call in calls]) if calls else ""


def _check(job: Job) -> None:
    sampling = job.sampling
    numbers: dict[str, float] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_penalty": sampling.repeat_penalty,
        "max_tokens": job.max_tokens or 0,
    }
    for token, bias in sampling.logit_bias:
        numbers[f"logit_bias of {bias} for the token"] = token
        numbers[f"logit_bias of the token {token}"] = bias
    for name, value in numbers.items():
        if not abs(value) <= _LARGEST:  # so nan is refused too
            raise RequestError(
                f"{name} = {value}: must be a number between {-_LARGEST} and {_LARGEST}",
                param=name.split()[0],
            )
    if not sampling.repeat_penalty > 0:
        raise RequestError("repeat_penalty must be over 0", param="repeat_penalty")
    if len(sampling.logit_bias) > _MOST_BIASES:
        raise RequestError(f"logit_bias has over {_MOST_BIASES} tokens", param="logit_bias")
    if isinstance(job.prompt, TokenIds) and not all(0 <= t <= _LARGEST for t in job.prompt.ids):
        raise RequestError(f"a token of the prompt must be from 0 to {_LARGEST}", param="prompt")
    if not 0 <= (job.logprobs or 0) < _NO_LOGPROBS:
        raise RequestError(f"logprobs must be from 0 to {_NO_LOGPROBS - 1}", param="logprobs")
    if len(job.stop) > _MOST_STOPS:
        raise RequestError(
            f"there are {len(job.stop)} stop strings: {_MOST_STOPS} are the most", param="stop"
        )


_QUESTION = struct.Struct("<B")
_SPECIAL, _OPENED, _SHOWN, _ASKED = 1, 2, 4, 8


def encode_question(question: Question) -> bytes:
    """The payload of TOKENISE; errors as of :func:`encode_job`."""
    flags = _SPECIAL * question.special | _OPENED * question.opened | _SHOWN * question.shown
    if question.prompt is None:
        return _QUESTION.pack(flags)
    return _QUESTION.pack(flags | _ASKED) + encode_job(Job(question.prompt))


def decode_question(payload: bytes) -> Question:
    """The question in a TOKENISE payload; raises :class:`FrameError`."""
    fields = _Fields(payload)
    flags = int(fields.unpack(_QUESTION)[0])
    prompt = decode_job(fields.rest()).prompt if flags & _ASKED else None
    special, opened, shown = (bool(flags & bit) for bit in (_SPECIAL, _OPENED, _SHOWN))
    return Question(prompt, special, opened, shown)


def _fold(seed: int) -> int:
    """A seed of any size as the 32 bits that llama.cpp takes; all ones would mean «random»."""
    return (seed ^ seed >> 32) % 0xFFFFFFFF


def decode_job(payload: bytes) -> Job:
    """The job in a GENERATE payload; raises :class:`FrameError`."""
    fields = _Fields(payload)
    temperature, top_p, top_k, seed, limit, flags, stops, biases, *more = fields.unpack(_JOB)
    flags = int(flags)
    min_p, once, each, factor, told = more
    pairs = map(fields.unpack, [_BIAS] * int(biases))
    bias = tuple((int(token), shift) for token, shift in pairs)
    fixed = int(seed) if flags & _SEEDED else None
    sampling = Sampling(temperature, top_p, int(top_k), fixed, min_p, once, each, factor, bias)
    stop = tuple(fields.text() for _ in range(int(stops)))
    prompt: Prompt
    if flags & _CHAT:
        prompt = tuple(_message(fields) for _ in range(fields.count()))
    elif flags & _TOKENS:
        prompt = TokenIds(tuple(map(int, fields.unpack(struct.Struct(f"<{fields.count()}I")))))
    else:
        prompt = fields.text()
    max_tokens = int(limit) if flags & _BOUNDED else None
    logprobs = None if told == _NO_LOGPROBS else int(told)
    schema, tools = _shape(fields.text()) if flags & _SHAPED else (None, None)
    digest, echo = bool(flags & _DIGEST), bool(flags & _ECHO)
    return Job(prompt, sampling, stop, max_tokens, logprobs, digest, echo, schema, tools)


def _shape(text: str) -> tuple[str | None, Tools | None]:
    try:
        schema, found = json.loads(text)
        if found is None:
            return schema, None
        shown, allowed, required, parallel = found
        return schema, Tools(tuple(Tool(*one) for one in shown), tuple(allowed), required, parallel)
    except (ValueError, TypeError, RecursionError) as error:
        raise FrameError(f"what an answer has to be cannot be read: {error}") from None


def _message(fields: _Fields) -> Message:
    role, name, content, answered = fields.text(), fields.text(), fields.text(), fields.text()
    try:
        calls = tuple(ToolCall(*call) for call in json.loads(fields.text() or "[]"))
    except (ValueError, TypeError, RecursionError) as error:
        raise FrameError(f"the calls of a message cannot be read: {error}") from None
    # the role is checked by the API
    return Message(role, content, name or None, calls, answered or None)  # type: ignore[arg-type]


def decode_ready(payload: bytes) -> Mapping[str, object]:
    """What READY tells of the model; raises :class:`FrameError`."""
    try:
        facts = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"READY holds no JSON: {error}") from None
    if not isinstance(facts, dict):
        raise FrameError("READY holds no JSON object")
    return facts


def encode_text(tokens: int, text: str) -> bytes:
    """The payload of TEXT: ``text`` covers ``tokens`` tokens."""
    return _COUNT.pack(tokens) + text.encode()


def decode_text(payload: bytes) -> tuple[int, str]:
    """(tokens, text) of a TEXT payload; raises :class:`FrameError`."""
    fields = _Fields(payload)
    return fields.count(), _utf8(fields.rest())


def encode_logprobs(tokens: Sequence[TokenLogprob]) -> bytes:
    """The payload of LOGPROBS."""
    found = [[*_pair(one), [*map(_pair, one.top)]] for one in tokens]
    return json.dumps(found, separators=(",", ":")).encode()


def _pair(one: Logprob | TokenLogprob) -> list[object]:
    return [one.token.decode("latin-1"), one.logprob]


def decode_logprobs(payload: bytes) -> tuple[TokenLogprob, ...]:
    """Those of a LOGPROBS payload; raises :class:`FrameError`."""
    try:
        return tuple(
            TokenLogprob(
                token.encode("latin-1"),
                None if logprob is None else float(logprob),
                tuple(Logprob(other.encode("latin-1"), float(log)) for other, log in top),
            )
            for token, logprob, top in json.loads(payload)
        )
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FrameError(f"LOGPROBS cannot be read: {error}") from None


def encode_calls(pieces: Sequence[CallPiece]) -> bytes:
    """The payload of CALLS."""
    return json.dumps([astuple(piece) for piece in pieces], separators=(",", ":")).encode()


def decode_calls(payload: bytes) -> tuple[CallPiece, ...]:
    """Those of a CALLS payload; raises :class:`FrameError`."""
    try:
        return tuple(
            CallPiece(int(index), None if name is None else str(name), str(arguments))
            for index, name, arguments in json.loads(payload)
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FrameError(f"CALLS cannot be read: {error}") from None


def encode_finish(finish: Finish) -> bytes:
    """The payload of FINISH."""
    counts = (finish.prompt_tokens, finish.completion_tokens, finish.cached_tokens)
    return _FINISH.pack(_REASONS.index(finish.reason), *counts) + finish.digest


def decode_finish(payload: bytes) -> Finish:
    """The :class:`Finish` in a payload; raises :class:`FrameError`."""
    fields = _Fields(payload)
    reason, prompt, completion, cached = map(int, fields.unpack(_FINISH))
    if reason >= len(_REASONS):
        raise FrameError(f"there is no way {reason} to finish")
    return Finish(_REASONS[reason], prompt, completion, cached, fields.rest())


def encode_failure(failure: Failure) -> bytes:
    """The payload of FAILED."""
    head = _FAILURE.pack(failure.code, failure.prompt_tokens, failure.context_tokens)
    return head + _text(failure.param) + failure.message.encode("utf-8", "replace")


def decode_failure(payload: bytes) -> Failure:
    """The :class:`Failure` in a payload; raises :class:`FrameError`."""
    fields = _Fields(payload)
    code, prompt, context = map(int, fields.unpack(_FAILURE))
    param = fields.text()
    try:
        return Failure(FailureCode(code), _utf8(fields.rest()), prompt, context, param)
    except ValueError:
        raise FrameError(f"there is no failure {code}") from None


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"a text is not UTF-8: {error}") from None
