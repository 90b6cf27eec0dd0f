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
)
from kwaai_core.openai.chunks import PING, Chunks, failed_event
from kwaai_core.openai.embeddings import EmbeddingsCall, embeddings, parse_embeddings
from kwaai_core.openai.requests import Call, parse_chat, parse_completion

__all__ = [
    "PING", "Call", "Choice", "Chunks", "EmbeddingsCall", "Head", "completion", "embeddings",
    "failed_event", "failure", "model", "models", "parse_chat", "parse_completion",
    "parse_embeddings", "route_header", "route_of",
]  # fmt: skip
