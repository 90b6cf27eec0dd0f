"""kwaai-core: the minimal core of a decentralised AI node. These are its public names."""
# ruff: noqa: I001  # the names are packed like those of __all__

from kwaai_core.errors import (
    Busy, ConfigError, ContextLengthExceeded, DeadlinePassed, FrameError, HostNotAllowed,
    KwaaiError, LobeFailed, ModelFileError, ModelLoading, ModelNotFound, NoNode,
    NoPeerAvailable, NotVerified, PeerDenied, PeerLost, PeerUnreachable, ProtocolRefused,
    RequestError, RequestTooLarge, RoleConflict, StreamEnded, UnsupportedParameter,
    UpstreamLost, WorkerLost,
)  # fmt: skip
from kwaai_core.hookspecs import hookimpl
from kwaai_core.peering import (
    Acquaintance, Broadcast, DataChannel, Door, Group, Identity, Invitation, Link, Owner,
    Record, Stream, Transport,
)  # fmt: skip
from kwaai_core.roles import (
    Catalog, Embedder, Executor, Host, KnowledgeStore, NoSettings, Offer, Route, Router,
    Settlement, TrustPolicy,
)  # fmt: skip
from kwaai_core.types import (
    Assessment, CallPiece, ChatRequest, Delta, Embedding, GenerateRequest, Hop, HopTiming, Intent,
    Logprob, Message, ModelCard, Prompt, Report, RoleName, Sampling, Span, Tier, TokenIds,
    TokenLogprob, Tokenizer, Tokens, Tool, ToolCall, Tools, Usage,
)  # fmt: skip

__all__ = [
    "Acquaintance", "Assessment", "Broadcast", "Busy", "CallPiece", "Catalog", "ChatRequest",
    "ConfigError", "ContextLengthExceeded", "DataChannel", "DeadlinePassed", "Delta", "Door",
    "Embedder", "Embedding", "Executor", "FrameError", "GenerateRequest", "Group", "Hop",
    "HopTiming", "Host",
    "HostNotAllowed", "Identity", "Intent", "Invitation", "KnowledgeStore", "KwaaiError", "Link",
    "LobeFailed", "Logprob", "Message", "ModelCard", "ModelFileError", "ModelLoading",
    "ModelNotFound", "NoNode", "NoPeerAvailable", "NoSettings", "NotVerified", "Offer", "Owner",
    "PeerDenied", "PeerLost", "PeerUnreachable", "Prompt", "ProtocolRefused", "Record", "Report",
    "RequestError", "RequestTooLarge", "RoleConflict", "RoleName", "Route", "Router", "Sampling",
    "Settlement", "Span", "Stream", "StreamEnded", "Tier", "TokenIds", "TokenLogprob",
    "Tokenizer", "Tokens", "Tool", "ToolCall", "Tools", "Transport", "TrustPolicy",
    "UnsupportedParameter", "UpstreamLost",
    "Usage", "WorkerLost", "hookimpl",
]  # fmt: skip
