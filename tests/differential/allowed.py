"""What may differ, each with its reason; whatever is not named here fails the suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.differential.cases import Case
from tests.differential.comparison import Aspect, Difference

EQUAL_TEXTS = 0.98
"""So many of the answers have to have the same text."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """A kind of difference that is meant, of one aspect. All else are patterns, as of a shell:
    where it is, in which cases (``category/name``), and what is there on each side."""

    name: str
    reason: str
    aspect: Aspect
    where: str = "*"
    cases: tuple[str, ...] = ("*",)
    ours: str = "*"
    theirs: str = "*"

    def covers(self, case: Case, difference: Difference) -> bool:
        return (
            difference.aspect == self.aspect
            and fnmatchcase(difference.where, self.where)
            and fnmatchcase(difference.ours, self.ours)
            and fnmatchcase(difference.theirs, self.theirs)
            and any(fnmatchcase(str(case), pattern) for pattern in self.cases)
        )


def which(case: Case, difference: Difference, allowed: Sequence[Allowed]) -> Allowed | None:
    """The first that covers a difference."""
    return next((one for one in allowed if one.covers(case, difference)), None)


_EXTRA = (
    Allowed(
        "timings", "llama-server measures each answer; a node tells that under kwaai, if asked",
        "key", "timings", ours="absent", theirs="object",
    ),
    Allowed(
        "system_fingerprint", "names llama-server's build; it is optional in OpenAI's API, and an "
        "answer of a node may come from several builds",
        "key", "system_fingerprint", ours="absent", theirs="string",
    ),
    Allowed(
        "kwaai", "who computed what: only a node has peers",
        "key", "kwaai", ours="object", theirs="absent",
    ),
)  # fmt: skip

_OPENAI = (
    Allowed(
        "nulls", "OpenAI always writes logprobs and refusal; llama-server leaves them out",
        "key", "choices.#.*", ours="null", theirs="absent",
    ),
    Allowed(
        "nulls", "the same in chunks without tokens",
        "key", "choices.#.logprobs", ours="null or object", theirs="object",
    ),
    Allowed(
        "first delta", "beside the role OpenAI sends an empty text, llama-server a null",
        "key", "choices.#.delta.content", ours="string", theirs="null or string",
    ),
    Allowed(
        "usage of streams", "OpenAI sends null in all chunks but the last, if it was asked for; "
        "llama-server sends nothing there",
        "key", "usage", ours="null or object", theirs="object",
    ),
    Allowed(
        "usage of streams", "OpenAI sends it in a chunk of its own, if it was asked for; "
        "llama-server sends that of a text always, beside the end of it",
        "form", "usage", theirs="beside a choice",
    ),
    Allowed(
        "usage of streams", "llama-server sends that of a text though it was not asked for",
        "key", "usage", ours="absent", theirs="object",
    ),
    Allowed(
        "errors", "the code of OpenAI's is a name or null; llama-server's is the status",
        "key", "error.code", theirs="number",
    ),
    Allowed(
        "errors", "OpenAI's say which field is at fault",
        "key", "error.param", theirs="absent",
    ),
    Allowed(
        "errors", "llama-server counts the tokens of what is too long; a node does so in words",
        "key", "error.n_*", ours="absent", theirs="number",
    ),
)  # fmt: skip

_LOGPROBS = (
    Allowed(
        "ids of tokens", "llama-server tells them beside the texts; OpenAI has no such key",
        "key", "choices.#.logprobs.content.#*.id", ours="absent", theirs="number",
    ),
    Allowed(
        "logprobs of texts", "OpenAI's older form, with arrays for all tokens; llama-server writes "
        "those of a text as those of a chat",
        "key", "choices.#.logprobs.*", ("logprobs/a text*",),
    ),
    Allowed(
        "none beside", "top_logprobs is 0 in OpenAI's API where it is not said, and 20 in "
        "llama-server, where 0 means no logprobs at all",
        "key", "choices.#.logprobs*", ("logprobs/* none beside", "logprobs/* unsaid"),
    ),
    Allowed(
        "none beside", "the same, as it is seen in the probabilities",
        "logprobs", "0 *", ("logprobs/* none beside", "logprobs/* unsaid"),
    ),
    Allowed(
        "end without text", "llama-server lists the token that ends an answer, with no text",
        "logprobs", "* length", ours="0", theirs="1",
    ),
    Allowed(
        "tokens within characters", "a token that ends within a character has an entry of its own, "
        "as with OpenAI; llama-server writes its bytes into that of the next one",
        "logprobs", "* split *",
    ),
)  # fmt: skip

_ENDINGS = (
    Allowed(
        "unfinished characters", "where max_tokens cuts a character in two a node writes U+FFFD, "
        "as llama-server does in texts that are not streamed; in all else that leaves it out",
        "ending", ours=r"'\ufffd'", theirs="''",
    ),
)  # fmt: skip

_COUNTS = (
    Allowed(
        "cached tokens", "which of the prompts before is used again is up to each of them",
        "usage", "cached_tokens",
    ),
    Allowed(
        "usage of several choices", "a node counts all of them, as OpenAI does; llama-server tells "
        "what the first one took",
        "usage", "*_tokens", ("choices/two*", "choices/three*", "text/two texts", "text/arrays *"),
    ),
)  # fmt: skip

_REFUSALS = (
    Allowed(
        "status of malformed requests", "llama-server takes some of them for a fault of its own",
        "status", "", ("errors/*", "tools/no *", "tools/an object"), "400", "500",
    ),
    Allowed(
        "unknown models", "llama-server has one model, and answers for it under any name",
        "status", "", ("errors/an unknown model",), "404", "200",
    ),
    Allowed(
        "unknown names", "a node refuses what it does not know; llama-server ignores it",
        "status", "", ("errors/an unknown name",), "400", "200",
    ),
    Allowed(
        "values out of range", "a node refuses them; llama-server takes the nearest, or none",
        "status", "",
        ("errors/temperature below 0", "errors/top_p above 1", "errors/max_tokens of 0",
         "bias/a token that is not there", "errors/a number for stop"),
        "400", "200",
    ),
    Allowed(
        "empty prompts", "there is nothing to go on from, which a node says; llama-server answers "
        "with an empty text",
        "status", "", ("empty/a text", "errors/no messages in the array"), "400", "200",
    ),
    Allowed(
        "mixed prompts", "llama-server takes texts among tokens, which OpenAI does not",
        "status", "", ("errors/a text among tokens",), "400", "200",
    ),
    Allowed(
        "models without a template", "llama-server lays conversations out in a form that such a "
        "model may never have seen; a node says that there is none",
        "status", "", ("template/*",), "400", "200",
    ),
    Allowed(
        "choices of no tools", "a node says that there is none to be called; llama-server answers",
        "status", "", ("tools/a choice of none",), "400", "200",
    ),
    Allowed(
        "methods", "a path that is there, but not with this method, is a 405 to a node",
        "status", "", ("errors/GET",), "405", "404",
    ),
)  # fmt: skip

ALLOWED: tuple[Allowed, ...] = (*_EXTRA, *_OPENAI, *_LOGPROBS, *_ENDINGS, *_COUNTS, *_REFUSALS)
