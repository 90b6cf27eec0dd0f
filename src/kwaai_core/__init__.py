"""kwaai-core: the minimal core of a decentralised AI node. These are its public names."""

from kwaai_core.errors import (
    Busy,
    ConfigError,
    ContextLengthExceeded,
    HostNotAllowed,
    KwaaiError,
    LobeFailed,
    ModelFileError,
    ModelLoading,
    ModelNotFound,
    NoNode,
    NoPeerAvailable,
    RequestError,
    RequestTooLarge,
    RoleConflict,
    UnsupportedParameter,
    UpstreamLost,
    WorkerLost,
)
from kwaai_core.hookspecs import hookimpl
from kwaai_core.roles import (
    Catalog,
    Embedder,
    Executor,
    Host,
    Identity,
    KnowledgeStore,
    NoSettings,
    Offer,
    Route,
    Router,
    Settlement,
    Stream,
    Transport,
    TrustPolicy,
)
from kwaai_core.types import (
    Assessment,
    ChatRequest,
    Delta,
    GenerateRequest,
    Hop,
    Intent,
    Message,
    ModelCard,
    Prompt,
    RoleName,
    Sampling,
    Span,
    Usage,
)

__all__ = [
    "Assessment", "Busy", "Catalog", "ChatRequest", "ConfigError", "ContextLengthExceeded",
    "Delta", "Embedder", "Executor", "GenerateRequest", "Hop", "Host", "HostNotAllowed",
    "Identity", "Intent", "KnowledgeStore", "KwaaiError", "LobeFailed", "Message", "ModelCard",
    "ModelFileError", "ModelLoading", "ModelNotFound", "NoNode", "NoPeerAvailable", "NoSettings",
    "Offer", "Prompt", "RequestError", "RequestTooLarge", "RoleConflict", "RoleName", "Route",
    "Router", "Sampling", "Settlement", "Span", "Stream", "Transport", "TrustPolicy",
    "UnsupportedParameter", "UpstreamLost", "Usage", "WorkerLost", "hookimpl",
]  # fmt: skip
