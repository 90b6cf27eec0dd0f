"""One tree of errors; each knows what the caller needs to answer it.

::

    KwaaiError                       500  internal_error
    ├── ConfigError                       the user's configuration; never reaches a client
    │   ├── RoleConflict                  two lobes offer one single role
    │   └── KeyDamaged                    the file of an API key is not what it has to be
    ├── NodeRunning                       another node holds the state folder
    ├── NoNode                            a command needs a running node and there is none
    ├── RequestError                 400
    │   ├── UnsupportedParameter     400  unsupported_parameter
    │   ├── ContextLengthExceeded    400  context_length_exceeded
    │   ├── InvalidKey               401  invalid_api_key
    │   ├── HostNotAllowed           403  host_not_allowed
    │   ├── ModelNotFound            404  model_not_found
    │   ├── RequestTooSlow           408
    │   ├── RequestTooLarge          413  request_too_large
    │   └── Busy                     429  rate_limit_exceeded
    ├── ModelFileError               503  model_file_invalid
    ├── NotVerified                       a statement of a peer is not what it claims to be
    ├── FrameError                        a frame is over its limit, or malformed
    ├── StreamEnded                       the peer said that it sends no more
    ├── NoPeerAvailable              503  no_peer_available
    │   ├── PeerUnreachable          503  no_peer_available
    │   ├── PeerDenied               503  no_peer_available
    │   └── ProtocolRefused          503  no_peer_available
    ├── ModelLoading                 503  model_loading
    ├── LobeFailed                   503  lobe_failed
    ├── WorkerLost                   502  lobe_failed
    └── UpstreamLost                 502  upstream_lost
        ├── PeerLost                 502  upstream_lost
        └── DeadlinePassed           502  upstream_lost

A message says what happened, to what, and what to do about it.
"""

from collections.abc import Sequence
from pathlib import Path
from traceback import walk_tb
from typing import ClassVar


class KwaaiError(Exception):
    """Base of every error that kwaai raises on purpose.

    ``status`` is the HTTP status and ``code`` the machine-readable word that the API answers
    with; ``param`` names the request field at fault; ``retry_after`` is in seconds.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str | None] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class ConfigError(KwaaiError):
    """The configuration cannot be used as it is; the message says where and how to mend it."""


class RoleConflict(ConfigError):
    """Two lobes offer a role that only one may fill, and nobody chose between them."""

    def __init__(self, role: str, lobes: Sequence[str]) -> None:
        names = " and ".join(f"“{name}”" for name in sorted(lobes))
        super().__init__(
            f"the lobes {names} both offer the role {role}: choose one in kwaai.toml, "
            f'under [roles], with the line: {role} = "{min(lobes)}"'
        )


class KeyDamaged(ConfigError):
    """The file of an API key cannot be read, or is not what it has to be: nobody comes in by it."""


class NodeRunning(KwaaiError):
    """Another node holds the lock of this state folder."""


class NoNode(KwaaiError):
    """A command needs a running node, and none runs on this state folder."""


class RequestError(KwaaiError):
    """The request is malformed, out of range, or asks for what cannot be done."""

    status = 400
    code: ClassVar[str | None] = None


class UnsupportedParameter(RequestError):
    """The request has a parameter that this node does not honour, so refuses."""

    code = "unsupported_parameter"


class ContextLengthExceeded(RequestError):
    """The prompt does not fit the model's context; both counts are in tokens.

    ``message`` is for what is no prompt, and has to have both.
    """

    code = "context_length_exceeded"

    def __init__(
        self, prompt_tokens: int, context_tokens: int, *, param: str, message: str = ""
    ) -> None:
        super().__init__(
            message
            or f"the prompt has {prompt_tokens} tokens, and the context of this model holds "
            f"{context_tokens}, of which the answer needs at least one: shorten the prompt",
            param=param,
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class InvalidKey(RequestError):
    """The request has no API key, or one that this node does not know."""

    status = 401
    code = "invalid_api_key"


class HostNotAllowed(RequestError):
    """The request's Host or Origin header is not one that this node answers to."""

    status = 403
    code = "host_not_allowed"


class ModelNotFound(RequestError):
    """No executor here runs the model; ``available`` lists the ids that there are."""

    status = 404
    code = "model_not_found"

    def __init__(self, model: str, available: Sequence[str]) -> None:
        there = ", ".join(sorted(available)) or "none (is a catalog lobe installed?)"
        super().__init__(f"there is no model “{model}” here; available: {there}", param="model")
        self.available = tuple(sorted(available))


class RequestTooSlow(RequestError):
    """The rest of the request did not arrive in time."""

    status = 408


class RequestTooLarge(RequestError):
    """The request body, or something in it, is over a limit of this node."""

    status = 413
    code = "request_too_large"


class Busy(RequestError):
    """A queue is full or a rate limit is reached; try again after ``retry_after`` seconds."""

    status = 429
    code = "rate_limit_exceeded"


class ModelFileError(KwaaiError):
    """A model file is truncated, hostile, or of a kind that cannot be run here."""

    status = 503
    code = "model_file_invalid"


class NoPeerAvailable(KwaaiError):
    """Nothing here or in reach satisfies the intent; the message says what was missing."""

    status = 503
    code = "no_peer_available"


class PeerUnreachable(NoPeerAvailable):
    """No connection to a peer could be made; the message has the cause for each address."""


class PeerDenied(NoPeerAvailable):
    """This node and a peer have no group in common, or one of the two blocks the other."""


class ProtocolRefused(NoPeerAvailable):
    """A peer is there, but does not serve the protocol that was asked for."""


class NotVerified(KwaaiError):
    """A signature, statement or name of a peer does not hold; the message says which part."""


class FrameError(KwaaiError):
    """A frame is longer than its protocol allows, or is not what the protocol says."""


class StreamEnded(KwaaiError):
    """The peer ended its direction of a stream, as agreed: there is no next frame."""


class ModelLoading(KwaaiError):
    """The model is not ready yet; try again after ``retry_after`` seconds."""

    status = 503
    code = "model_loading"


class LobeFailed(KwaaiError):
    """The lobe that fills a role has failed; ``lobe`` names it and ``cause`` says why."""

    status = 503
    code = "lobe_failed"

    def __init__(self, lobe: str, cause: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"the lobe “{lobe}” failed: {cause}", retry_after=retry_after)
        self.lobe = lobe
        self.cause = cause


class WorkerLost(KwaaiError):
    """The local process that computed an answer died in the middle of it."""

    status = 502
    code = "lobe_failed"


class UpstreamLost(KwaaiError):
    """A peer was lost in mid-answer and could not be replaced."""

    status = 502
    code = "upstream_lost"


class PeerLost(UpstreamLost):
    """The connection to a peer broke, or the peer gave the stream up without ending it."""


class DeadlinePassed(UpstreamLost):
    """A peer did not answer, or did not read, within the seconds that it had."""


def leaf(error: BaseException) -> BaseException:
    """The first error in a group, however deep, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def cause_of(error: BaseException) -> str:
    """What went wrong, in one line for people, whatever was raised."""
    first = leaf(error)
    if isinstance(first, KwaaiError):
        return first.message
    return ": ".join(part for part in (type(first).__name__, str(first)) if part)


def place_in(package: str, error: BaseException) -> str:
    """Where code of a package met an error, like `` at package/module.py:7``, or nothing."""
    place = ""
    for frame, line in walk_tb(leaf(error).__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            place = f" at {'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{line}"
    return place
