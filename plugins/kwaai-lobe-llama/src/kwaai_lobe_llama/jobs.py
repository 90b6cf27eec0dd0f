"""What a node asks a worker for, a job or a question, and the frames that hold them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

from kwaai_core import (
    GenerateRequest,
    Message,
    Prompt,
    RequestError,
    Sampling,
    TokenIds,
    Tool,
    ToolCall,
    Tools,
)
from kwaai_lobe_llama.frames import COUNT, Fields, FrameError, text_field


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


# temperature, top_p, top_k, seed, max_tokens, flags, stops, biases, min_p and three penalties,
# how many likely tokens are told
_JOB = struct.Struct("<ffiIiBBHffffBxxx")
_BIAS = struct.Struct("<if")
_CHAT, _SEEDED, _DIGEST, _BOUNDED, _TOKENS, _SHAPED, _ECHO = 1, 2, 4, 8, 16, 32, 64
_NO_LOGPROBS = 255
_LARGEST = 2**31 - 1  # of a job's numbers; llama.cpp's are of 32 bits
_MOST_STOPS = 255
_MOST_BIASES = 65535


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
    parts = [head, *(_BIAS.pack(*bias) for bias in sampling.logit_bias), *map(text_field, job.stop)]
    if isinstance(job.prompt, str):
        parts.append(text_field(job.prompt))
    elif isinstance(job.prompt, TokenIds):
        ids = job.prompt.ids
        parts += [COUNT.pack(len(ids)), struct.pack(f"<{len(ids)}I", *ids)]
    else:
        parts.append(COUNT.pack(len(job.prompt)))
        for message in job.prompt:
            texts = (message.role, message.name or "", message.content, message.tool_call_id or "")
            parts += map(text_field, (*texts, _calls(message.tool_calls)))
    if flags & _SHAPED:
        parts.append(text_field(json.dumps([job.schema, job.tools and astuple(job.tools)])))
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


def _fold(seed: int) -> int:
    """A seed of any size as the 32 bits that llama.cpp takes; all ones would mean «random»."""
    return (seed ^ seed >> 32) % 0xFFFFFFFF


def decode_job(payload: bytes) -> Job:
    """The job in a GENERATE payload; raises :class:`FrameError`."""
    fields = Fields(payload)
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


def _message(fields: Fields) -> Message:
    role, name, content, answered = fields.text(), fields.text(), fields.text(), fields.text()
    try:
        calls = tuple(ToolCall(*call) for call in json.loads(fields.text() or "[]"))
    except (ValueError, TypeError, RecursionError) as error:
        raise FrameError(f"the calls of a message cannot be read: {error}") from None
    # the role is checked by the API
    return Message(role, content, name or None, calls, answered or None)  # type: ignore[arg-type]


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
    fields = Fields(payload)
    flags = int(fields.unpack(_QUESTION)[0])
    prompt = decode_job(fields.rest()).prompt if flags & _ASKED else None
    special, opened, shown = (bool(flags & bit) for bit in (_SPECIAL, _OPENED, _SHOWN))
    return Question(prompt, special, opened, shown)
