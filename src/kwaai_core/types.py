"""The values that cross borders between core and lobes: frozen, slotted, no behaviour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Tier = Literal["unknown", "known", "verified", "trusted"]
FinishReason = Literal["stop", "length", "tool_calls"]
ChatRole = Literal["system", "developer", "user", "assistant", "tool"]


class RoleName(StrEnum):
    """The nine roles, in the order in which core opens them; the order is the dependency graph.

    A role may reach only those before it while it opens.
    """

    IDENTITY = "identity"
    TRANSPORT = "transport"
    TRUST = "trust"
    SETTLEMENT = "settlement"
    CATALOG = "catalog"
    EMBEDDER = "embedder"
    STORE = "store"
    EXECUTOR = "executor"
    ROUTER = "router"


MANY = frozenset({RoleName.CATALOG, RoleName.STORE, RoleName.EXECUTOR})
"""The roles that any number of lobes may fill at once; each of the others has one filling."""


@dataclass(frozen=True, slots=True)
class Span:
    """The contiguous range of transformer blocks ``[lo, hi)`` of a model."""

    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a catalog, an executor or an embedder says about one model.

    ``id`` is for people and for the API's ``model`` field; ``digest`` is the model's identity,
    the hex SHA-256 of :mod:`kwaai_core.gguf.digest`, or empty where a model has no weights.
    ``size`` is in bytes, ``context_length`` in tokens (what the model was trained for),
    ``created`` in seconds since 1970. An embedder's model has ``dimensions``, how many numbers a
    vector has, and its ``digest`` is the SHA-256 of its file; a model that makes text has 0.
    """

    id: str
    digest: str = ""
    architecture: str = ""
    size: int = 0
    blocks: int = 0
    context_length: int = 0
    created: int = 0
    source: str = ""
    dimensions: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that an answer made; ``arguments`` are JSON, an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; one of the role ``tool`` says which call it is the result of."""

    role: ChatRole
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that an answer may call; ``parameters`` is a JSON Schema, as JSON. Where that asks
    for what an executor cannot hold an answer to, this is an error if ``strict``, else a hint."""

    name: str
    description: str | None
    parameters: str
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that a model is shown, the numbers of those that it may call, whether it has to,
    and whether it may call several."""

    shown: tuple[Tool, ...]
    allowed: tuple[int, ...]
    required: bool = False
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt that is tokens already, by their numbers in the model's vocabulary."""

    ids: tuple[int, ...]


Prompt = tuple[Message, ...] | str | TokenIds
"""A conversation, to be laid out by the model's own template; or raw text, or tokens, taken as they
are."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text as a vector of length 1, ``(dimensions,) float32``, and how many tokens it has.

    Numpy takes a ``vector`` that has the buffer protocol without a copy.
    """

    vector: Sequence[float]
    tokens: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn from the logits; the defaults are llama.cpp's.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off. Without a
    ``seed`` one is drawn for the request; with one an executor that is idle repeats its answer.
    The penalties lower the logits of tokens that are among the last 64 of prompt and answer:
    ``presence_penalty`` once, ``frequency_penalty`` for each time, and ``repeat_penalty`` as a
    factor (1 is off). ``logit_bias`` has pairs of a token's number and what is added to its logit,
    before all else.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    seed: int | None = None
    min_p: float = 0.05
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def penalises(self) -> bool:
        """Whether the tokens before make a difference."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repeat_penalty
        return penalties != (0, 0, 1)


@dataclass(frozen=True, slots=True)
class Intent:
    """What a caller wants; nothing else decides a route.

    ``max_latency_ms`` is the predicted median per output token, ``max_first_token_ms`` the
    predicted time to the first, ``max_price`` milli-credits per 1,000 output tokens.
    ``exact`` None means: exact on a route over spans, not on one local worker.
    """

    model: str
    kind: Literal["inference"] = "inference"
    min_tier: Tier = "unknown"
    max_latency_ms: float | None = None
    max_first_token_ms: float | None = None
    max_price: int | None = None
    local_blocks: int = 0
    exact: bool | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a client asked for, parsed: an intent and what to generate from.

    ``max_tokens`` None means: as many as the context has room for; with 0 the prompt is computed,
    and that is all. ``logprobs`` is how many of the likeliest tokens are to be told beside each,
    None for no probabilities at all. ``echo``: the prompt, which is no conversation, is told before
    the answer, with the probabilities of its tokens where those are asked for. ``schema`` is a JSON
    Schema, as JSON, that the answer has to fit, and ``tools`` are what it may call instead.
    """

    intent: Intent
    prompt: Prompt
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool = False
    schema: str | None = None
    tools: Tools | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A :class:`ChatRequest` whose model has been resolved; what an executor is given."""

    model: ModelCard
    prompt: Prompt
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    exact: bool | None = None
    logprobs: int | None = None
    echo: bool = False
    schema: str | None = None
    tools: Tools | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens; ``cached_tokens`` are those of the prompt that were not computed again.

    A token that ends an answer is one of the ``completion_tokens``, though it has no text.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Hop:
    """Who runs which blocks of a route; ``peer`` is ``local`` for this node."""

    peer: str
    span: Span


@dataclass(frozen=True, slots=True)
class HopTiming:
    """What an answer took at one hop, in all: milliseconds of waiting there, of computing, and on
    the way; ``rows`` were computed, of which ``replayed`` because a hop was lost."""

    hop: Hop
    rows: int
    replayed: int
    queue_ms: float
    compute_ms: float
    wire_ms: float


@dataclass(frozen=True, slots=True)
class Report:
    """How an answer over spans came about: over which hops in the end, and whether its text is
    certainly that of any other run."""

    timings: tuple[HopTiming, ...]
    exact: bool
    same_text_guaranteed: bool


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token's bytes, and the natural logarithm of its probability under the model itself, before
    anything that :class:`Sampling` does."""

    token: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's bytes and its :class:`Logprob`, None for the first of a prompt, which follows
    nothing; and the likeliest in its place, the first first."""

    token: bytes
    logprob: float | None
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of the call with this number: its name, which comes first, or JSON of its
    arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer: ``text`` is whole code points and covers ``tokens`` tokens.

    ``calls`` are pieces of calls of tools, which come after all text.
    ``logprobs`` are those of its tokens, where they were asked for; of tokens that a stop string
    has cut off there are none. What is echoed of a prompt comes first, and covers no tokens of the
    answer; an answer with an echo tells the probability of the token that ended it too. The last
    delta of an answer, and only that one, has ``finish`` and ``usage``, and a ``report`` where
    there is something to tell.
    """

    text: str
    tokens: int = 0
    finish: FinishReason | None = None
    usage: Usage | None = None
    report: Report | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text: their numbers, how the vocabulary writes them where that was asked for,
    and how many of them the context of their model holds."""

    ids: tuple[int, ...]
    shown: tuple[str, ...] = ()
    context: int = 0


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What the tokenizer of a model is: how the special tokens are written, or nothing where there
    are none, of which ``adds_bos`` and ``adds_eos`` are put around a text; its chat ``template``;
    how many ``tokens`` there are, and how many of them the ``context`` holds."""

    bos: str = ""
    eos: str = ""
    pad: str = ""
    template: str = ""
    adds_bos: bool = False
    adds_eos: bool = False
    tokens: int = 0
    context: int = 0


@dataclass(frozen=True, slots=True)
class Assessment:
    """How far this node trusts a peer: ``score`` in [0, 1], its tier, and why."""

    peer: str
    score: float
    tier: Tier
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LobeStatus:
    """What ``kwaai lobes`` shows of one offer of one lobe.

    ``state``: ``ready``, ``waiting`` (for another lobe), ``failed``, ``idle`` (its role is filled
    by another, or no node runs), ``opening``. ``cause`` says why, where it is not ready. ``facts``
    is what the role itself tells, ready for JSON: see :class:`kwaai_core.roles.Describes`.
    """

    lobe: str
    version: str
    role: str
    offer: str
    state: Literal["ready", "waiting", "failed", "idle", "opening"]
    cause: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
