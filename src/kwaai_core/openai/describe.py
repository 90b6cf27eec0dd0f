"""The OpenAPI document of what a node serves, made from its routes and its parsers."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from kwaai_core.openai.bodies import REQUESTS
from kwaai_core.openai.described import Schema
from kwaai_core.openai.response_schemas import RESPONSE_SCHEMAS
from kwaai_core.openai.schemas import SCHEMAS, ref

VERSION = "3.1.0"

_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_TITLE = "kwaai: a node's HTTP API"
_ABOUT = (
    "OpenAI's API as this node serves it. Every GET answers HEAD. A parameter that is not here is "
    "refused with a 400 that names it."
)
_OPEN = "/health"
"""The one path that needs no key."""

_KEY: Schema = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, as kwaai keys create makes them: needed from the first one on.",
}
_ANY: Schema = {}


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of one path does: a name for it, which stays as it is since clients are made
    with it; the schemas of its body, of its answer, which is None where there is never one, and of
    an event where it can stream; and what its query may have."""

    name: str
    summary: str
    answer: Schema | None
    body: str = ""
    event: Schema | None = None
    query: tuple[str, ...] = ()
    media: str = "application/json"


def _tokenize(name: str) -> Operation:
    summary = "The tokens of a text, or of a conversation"
    return Operation(name, summary, ref("Tokens"), "TokenizeRequest")


def _detokenize(name: str) -> Operation:
    return Operation(name, "The text of tokens", ref("Detokenized"), "DetokenizeRequest")


def _info(name: str) -> Operation:
    summary = "The special tokens and the chat template of a model"
    return Operation(name, summary, ref("TokenizerInfo"), query=("model",))


def _not_kept(name: str) -> Operation:
    return Operation(name, "404: no response is kept", None)


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("GET", "/"): Operation(
        "showIndex", "The base URL of the API, and the paths to begin with", _ANY
    ),
    ("GET", _OPEN): Operation("checkHealth", "Whether the process is alive", _ANY),
    ("GET", "/ready"): Operation(
        "checkReadiness", "Whether a request would be answered without waiting", _ANY
    ),
    ("GET", "/metrics"): Operation(
        "showMetrics", "Numbers in Prometheus' format", {"type": "string"}, media="text/plain"
    ),
    ("GET", "/openapi.json"): Operation("showOpenapi", "This document", _ANY),
    ("GET", "/v1/models"): Operation(
        "listModels", "Every model that can be run here", ref("ModelList")
    ),
    ("GET", "/v1/models/{id}"): Operation("retrieveModel", "One of the models", ref("Model")),
    ("POST", "/v1/chat/completions"): Operation(
        "createChatCompletion",
        "The next turn of a conversation",
        ref("ChatCompletion"),
        "ChatRequest",
        {"anyOf": [ref("ChatCompletionChunk"), ref("Error")]},
    ),
    ("POST", "/v1/completions"): Operation(
        "createCompletion",
        "How a text goes on, without a template",
        ref("Completion"),
        "CompletionRequest",
        {"anyOf": [ref("CompletionChunk"), ref("Error")]},
    ),
    ("POST", "/v1/embeddings"): Operation(
        "createEmbedding", "Texts as vectors", ref("Embeddings"), "EmbeddingsRequest"
    ),
    ("POST", "/v1/responses"): Operation(
        "createResponse",
        "The next turn of a conversation, as a response",
        ref("Response"),
        "ResponseRequest",
        ref("ResponseEvent"),
    ),
    ("GET", "/v1/responses/{id}"): _not_kept("retrieveResponse"),
    ("POST", "/v1/responses/{id}"): _not_kept("changeResponse"),
    ("DELETE", "/v1/responses/{id}"): _not_kept("deleteResponse"),
    ("POST", "/tokenize"): _tokenize("tokenize"),
    ("POST", "/detokenize"): _detokenize("detokenize"),
    ("GET", "/tokenizer_info"): _info("showTokenizer"),
    ("POST", "/v1/tokenize"): _tokenize("tokenizeV1"),
    ("POST", "/v1/detokenize"): _detokenize("detokenizeV1"),
    ("GET", "/v1/tokenizer_info"): _info("showTokenizerV1"),
    ("GET", "/lobes"): Operation("listLobes", "Every lobe and its state", _ANY),
    ("GET", "/peers"): Operation("listPeers", "The peers of this node", _ANY),
    ("POST", "/peers/{command}"): Operation("commandPeers", "A command of kwaai peers", _ANY),
}
"""By method and path. What is not here belongs to a lobe."""


def openapi(
    routes: Iterable[tuple[str, str]],
    version: str,
    *,
    max_messages: int = 2048,
    keyed: bool = False,
) -> dict[str, object]:
    """The document of these routes, each a method and a path as Starlette writes it; ``keyed``:
    where they need a key now."""
    paths: dict[str, Schema] = {}
    for method, path in routes:
        plain = _PARAMETER.sub(r"{\1}", path)
        operation = OPERATIONS.get((method, plain)) or _of_lobe(method, plain)
        found = _operation(operation, keyed=keyed and plain != _OPEN)
        parameters = _parameters("path", _PARAMETER.findall(path))
        parameters += _parameters("query", operation.query)
        more = {"parameters": parameters} if parameters else {}
        paths.setdefault(plain, {})[method.lower()] = found | more
    return {
        "openapi": VERSION,
        "info": {"title": _TITLE, "version": version, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": _requests(max_messages) | SCHEMAS | RESPONSE_SCHEMAS,
            "responses": _FAILURES,
            "securitySchemes": {"key": _KEY},
        },
    }


def _of_lobe(method: str, path: str) -> Operation:
    words = re.findall(r"[a-z0-9]+", f"{method} {path}".lower())
    return Operation("_".join(words), "A route of a lobe", _ANY)


@lru_cache(1)  # all of it takes 15 ms, in which the node does nothing else
def _requests(max_messages: int) -> dict[str, Schema]:
    return {name: request(max_messages) for name, request in REQUESTS.items()}


def _operation(operation: Operation, *, keyed: bool) -> Schema:
    found: Schema = {"operationId": operation.name, "summary": operation.summary}
    found["responses"] = _responses(operation, keyed=keyed)
    if operation.body:
        found["requestBody"] = {
            "required": True,
            "content": _content("application/json", ref(operation.body)),
        }
    return found | ({"security": [{"key": []}]} if keyed else {})


def _responses(operation: Operation, *, keyed: bool) -> Schema:
    found: Schema = {}
    if operation.answer is not None:
        answer = _content(operation.media, operation.answer)
        if operation.event is not None:
            answer |= _content("text/event-stream", operation.event)
        found["200"] = {"description": "The answer", "content": answer}
    names = ["NoKey", "Limited"] if keyed else ["Limited"]
    for name in (*names, "Unavailable", "Refused", "Failed"):
        found[_STATUS[name]] = {"$ref": f"#/components/responses/{name}"}
    return found


def _content(media: str, schema: Schema) -> Schema:
    return {media: {"schema": schema}}


def _failure(about: str, *headers: str) -> Schema:
    text: Schema = {"schema": {"type": "string"}}
    found: Schema = {"description": about, "content": _content("application/json", ref("Error"))}
    return found | ({"headers": dict.fromkeys(headers, text)} if headers else {})


_STATUS = {
    "NoKey": "401",
    "Limited": "429",
    "Unavailable": "503",
    "Refused": "4XX",
    "Failed": "5XX",
}
_FAILURES: Schema = {
    "NoKey": _failure("There is no key, or none that this node knows", "www-authenticate"),
    "Limited": _failure("A queue is full, or a limit of the key is reached", "retry-after"),
    "Unavailable": _failure("Nothing here can answer that now", "retry-after"),
    "Refused": _failure("Something is wrong with the request: the message says what"),
    "Failed": _failure("The node could not answer: the message says why"),
}


def _parameters(where: str, names: Iterable[str]) -> list[Schema]:
    text: Schema = {"type": "string"}
    required = where == "path"
    return [{"name": name, "in": where, "required": required, "schema": text} for name in names]
