"""What can go wrong between a request and its engine, and how HTTP says so."""

from __future__ import annotations

from sllm.errors import EngineError, SllmError


class RequestError(SllmError):
    """A request that gets an error answer.

    Attributes:
        status: HTTP status.
        type, code, param: as in OpenAI's error body.
        retry_after: seconds after which trying again makes sense; None when it does not.
    """

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status or self.status
        self.code = code or self.code
        self.param = param
        self.retry_after = retry_after


class UnknownModelError(RequestError):
    """No model of that name is served."""

    status = 404
    code = "model_not_found"


class UnauthorizedError(RequestError):
    """The API key is missing or wrong."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class UnavailableError(RequestError):
    """Right now nobody can answer: starting took too long, or the router is going down."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class QueueFullError(RequestError):
    """Too many requests wait for the same model already."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class UpstreamError(RequestError):
    """The engine failed while it handled the request."""

    status = 502
    type = "server_error"
    code = "engine_failed"


class StartError(EngineError):
    """An engine process did not become ready."""


class StartFailedError(UnavailableError):
    """The model could not be started; the message ends with the engine's own last lines."""

    code = "engine_start_failed"
