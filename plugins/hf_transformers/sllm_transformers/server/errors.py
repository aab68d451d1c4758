"""Errors in OpenAI's body."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sllm.errors import SllmError


class ApiError(Exception):
    """An answer other than 200.

    Attributes:
        status: HTTP status.
        code, param: OpenAI's machine-readable error code, and the field that is wrong.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def body(message: str, *, status: int, code: str | None, param: str | None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> JSONResponse:
    """A response with OpenAI's error object."""
    return JSONResponse(body(message, status=status, code=code, param=param), status_code=status)


def _validation(error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    param = where[0] if where else None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return answer(400, f"the body is not valid JSON: {first['ctx']['error']}")
    if first["type"] == "extra_forbidden":
        message = f"unrecognized request argument: {'.'.join(where)}"
    elif where:
        message = f"{'.'.join(where)}: {message}"
    return answer(400, message, param=param)


def install(app: FastAPI) -> None:
    """Have every error of `app` answered in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return answer(error.status, str(error), code=error.code, param=error.param)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return _validation(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))

    @app.exception_handler(SllmError)
    async def sllm_error(request: Request, error: SllmError) -> JSONResponse:
        return answer(503, str(error))

    @app.exception_handler(Exception)
    async def other_error(request: Request, error: Exception) -> JSONResponse:
        return answer(500, f"internal error: {error}")
