"""OpenAI's API as pure functions: from the wire to types, and back."""

from kwaai_core.openai.answers import (
    Choice,
    Head,
    completion,
    failure,
    model,
    models,
    route_header,
    route_of,
    together,
)
from kwaai_core.openai.chunks import PING, Chunks, failed_event
from kwaai_core.openai.describe import openapi
from kwaai_core.openai.embeddings import EmbeddingsCall, embeddings, parse_embeddings
from kwaai_core.openai.forms import document, events
from kwaai_core.openai.requests import Call, parse_chat, parse_completion
from kwaai_core.openai.response_events import ResponseEvents
from kwaai_core.openai.responses import ResponseCall, parse_response

__all__ = [
    "PING", "Call", "Choice", "Chunks", "EmbeddingsCall", "Head", "ResponseCall", "ResponseEvents",
    "completion", "document", "embeddings", "events", "failed_event", "failure", "model", "models",
    "openapi", "parse_chat", "parse_completion", "parse_embeddings", "parse_response",
    "route_header", "route_of", "together",
]  # fmt: skip
