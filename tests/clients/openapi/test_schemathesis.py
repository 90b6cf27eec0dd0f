"""schemathesis, with OpenAI's published document as far as a node serves it, and with our own.

What OpenAI's document calls valid is answered with 200, and what the node's own document does not,
with a 400; always in the forms that there are for answers, events and errors.
"""

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import CheckContext, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from tests.clients.conftest import SMOLLM2
from tests.clients.openapi.cut import REFUSED, SCHEMA, TOOLS, cut

ECHO, EMBEDDER = "echo", "all-minilm-l6-v2"
VOCABULARY = 32_000  # less than any model here has
LAST = ("response.completed", "response.incomplete")
BOUNDED: Any = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": (Phase.explicit, Phase.generate),
    "suppress_health_check": list(HealthCheck),
}


def operations(node: str, model: str, *, own: bool = False) -> dict[str, Any]:
    """What a document has, by method and path: OpenAI's, or the node's own; of one model."""
    ours = httpx.get(f"{node}/openapi.json").json()
    document = ours if own else cut(ours, model, EMBEDDER, VOCABULARY)
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=node if own else f"{node}/v1")
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def try_out(operation: Any, mode: GenerationMode, examples: int, *excluded: Any) -> None:
    """Call it with so many bodies of one kind, and look at every answer."""

    @settings(max_examples=examples, **BOUNDED)
    @given(case=operation.as_strategy(generation_mode=mode))
    def asked(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            case.body = agreeing(case.body)
        case.call_and_validate(
            additional_checks=[events_are_whole], excluded_checks=[*excluded], timeout=60
        )

    asked()


def events_are_whole(ctx: CheckContext, response: Any, case: Any) -> None:
    """Each event of a stream is what the document says, and the last one says that it is."""
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return
    lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
    if case.operation.path.endswith("/responses"):
        assert json.loads(lines.pop().removeprefix("data: "))["type"] in LAST
    else:
        assert lines.pop() == "data: [DONE]"
    raw = case.operation.schema.raw_schema
    said = raw["paths"][case.operation.path]["post"]["responses"]["200"]["content"]
    event = said["text/event-stream"]
    validator = Draft202012Validator(
        {"components": raw["components"]} | event.get("x-event", event.get("schema"))
    )
    for line in lines:
        validator.validate(json.loads(line.removeprefix("data: ")))


def agreeing(body: Any) -> Any:
    """With what the descriptions of the document ask for between two parameters."""
    if isinstance(body, dict):
        if body.get("top_logprobs"):
            body["logprobs"] = True
        if "max_completion_tokens" in body:
            body["max_tokens"] = body["max_completion_tokens"]
        if "best_of" in body:
            body["best_of"] = body.get("n", 1)
    return body


LABELS = (
    "GET /models",
    "GET /models/{model}",
    "POST /chat/completions",
    "POST /completions",
    "POST /embeddings",
    "POST /responses",
)
POSTS = LABELS[2:]
each_operation = pytest.mark.parametrize("label", LABELS)


@each_operation
def test_what_is_right_is_answered(label: str, node: str) -> None:
    try_out(operations(node, SMOLLM2)[label], GenerationMode.POSITIVE, 40)


@pytest.mark.parametrize("label", POSTS)
def test_whatever_is_wrong_gets_a_proper_answer(label: str, node: str) -> None:
    # of what OpenAI's document does not allow some is allowed here: null, and larger numbers
    operation = operations(node, ECHO)[label]
    try_out(operation, GenerationMode.NEGATIVE, 60, negative_data_rejection)


@pytest.mark.parametrize("label", POSTS)
def test_what_is_wrong_by_our_own_document_is_refused(label: str, node: str) -> None:
    operation = operations(node, ECHO, own=True)[label.replace("POST ", "POST /v1")]
    try_out(operation, GenerationMode.NEGATIVE, 60)


REQUESTS = {
    "/chat/completions": "ChatRequest",
    "/completions": "CompletionRequest",
    "/responses": "ResponseRequest",
}


@pytest.mark.parametrize("path", REQUESTS)
def test_what_is_taken_out_is_refused_here_too(path: str, node: str) -> None:
    """Or it would have to be in the document that is tested."""
    ours = httpx.get(f"{node}/openapi.json").json()["components"]["schemas"]
    properties = ours[REQUESTS[path]]["properties"]
    refused = [name for name, why in REFUSED[path].items() if why not in (SCHEMA, TOOLS)]
    assert [name for name in refused if not does_nothing(properties.get(name))] == []


def does_nothing(schema: Any) -> bool:
    """Whether only such values are accepted as change nothing."""
    if schema is None or {"enum", "const"} & schema.keys() or schema.get("type") == "null":
        return True
    parts = [*schema.get("anyOf", ()), *schema.get("properties", {}).values()]
    return bool(parts) and all(does_nothing(part) for part in parts)


def test_every_path_that_both_have_is_tested(node: str) -> None:
    assert operations(node, ECHO).keys() == set(LABELS)
