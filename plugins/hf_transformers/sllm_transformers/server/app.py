"""The HTTP routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from sllm_transformers.generation import Generation, Piece, SamplingParams, Worker
from sllm_transformers.server import errors, prompts
from sllm_transformers.server.errors import ApiError
from sllm_transformers.server.replies import ChatReply, CompletionReply, Usage
from sllm_transformers.server.schema import ChatRequest, CompletionRequest


class Server:
    """Answers requests with one model.

    Attributes:
        name: the model name that clients use.
    """

    def __init__(self, worker: Worker, name: str) -> None:
        self.name = name
        self._worker = worker
        self._created = int(time.time())

    async def completions(self, request: CompletionRequest, raw: Request) -> Response:
        """POST /v1/completions"""
        self._check_name(request.model)
        ids = prompts.completion_ids(self._worker.model, request)
        reply = CompletionReply(self.name)
        return await self._answer(raw, request, ids, request.max_tokens, reply)

    async def chat(self, request: ChatRequest, raw: Request) -> Response:
        """POST /v1/chat/completions"""
        self._check_name(request.model)
        ids = prompts.chat_ids(self._worker.model, request)
        return await self._answer(raw, request, ids, request.limit, ChatReply(self.name))

    async def models(self) -> dict[str, Any]:
        """GET /v1/models"""
        card = {"id": self.name, "object": "model", "created": self._created, "owned_by": "sllm"}
        card["max_model_len"] = self._worker.model.context_length
        return {"object": "list", "data": [card]}

    async def health(self) -> dict[str, Any]:
        """GET /health"""
        worker = self._worker
        return {"status": "ok", "running": worker.running, "waiting": worker.waiting}

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist; this engine serves {self.name!r}",
                code="model_not_found",
                param="model",
            )

    async def _answer(
        self,
        raw: Request,
        request: CompletionRequest | ChatRequest,
        prompt_ids: list[int],
        max_tokens: int | None,
        reply: CompletionReply,
    ) -> Response:
        model = self._worker.model
        params = request.sampling(
            prompts.tokens_left(model, prompt_ids, max_tokens, reply.prompt_field)
        )
        usage = Usage(len(prompt_ids))
        pieces = self._pieces(prompt_ids, params, usage)
        if request.stream:
            stream = _events(pieces, reply, usage, request.include_usage)
            return StreamingResponse(stream, media_type="text/event-stream")
        collected = await _unless_disconnected(raw, _collect(pieces))
        if collected is None:
            return Response(status_code=499)
        return JSONResponse(reply.whole(*collected, usage))

    async def _pieces(
        self, prompt_ids: list[int], params: SamplingParams, usage: Usage
    ) -> AsyncIterator[Piece]:
        """Generate; abandoning the iterator cancels the generation.

        Raises:
            ApiError: the generation failed.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Piece] = asyncio.Queue()

        def emit(piece: Piece) -> None:
            # The loop may have been closed since: then nobody listens any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(arrived.put_nowait, piece)

        generation = Generation(prompt_ids, params, emit)
        self._worker.submit(generation)
        try:
            while True:
                piece = await arrived.get()
                usage.completion_tokens += len(piece.token_ids)
                if piece.error is not None:
                    raise ApiError(500, f"the generation failed: {piece.error}") from piece.error
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            generation.cancelled.set()


async def _collect(pieces: AsyncIterator[Piece]) -> tuple[str, str | None]:
    """The whole text and the finish reason."""
    texts, reason = [], None
    async for piece in pieces:
        texts.append(piece.text)
        reason = piece.finish_reason
    return "".join(texts), reason


async def _events(
    pieces: AsyncIterator[Piece], reply: CompletionReply, usage: Usage, include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events, one chunk each."""
    if (opening := reply.opening()) is not None:
        yield _event(opening)
    try:
        async for piece in pieces:
            if piece.text or piece.finish_reason:
                yield _event(reply.chunk(piece.text, piece.finish_reason))
    except ApiError as error:
        # The status line is long gone: the error travels as an event, as OpenAI's does.
        yield _event(errors.body(str(error), status=error.status, code=error.code, param=None))
        return
    if include_usage:
        yield _event(reply.usage_chunk(usage))
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _unless_disconnected(raw: Request, work: Any) -> tuple[str, str | None] | None:
    """The result of `work`; None if the client went away first, and `work` is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(raw))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            result: tuple[str, str | None] = task.result()
            return result
        return None
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(raw: Request) -> None:
    while (await raw.receive())["type"] != "http.disconnect":
        pass


def make_app(worker: Worker, name: str) -> FastAPI:
    """The application that serves `worker`'s model under `name`."""
    server = Server(worker, name)
    app = FastAPI(title="sllm transformers engine", openapi_url=None)
    errors.install(app)
    app.get("/health")(server.health)
    app.get("/v1/models")(server.models)
    app.post("/v1/completions")(server.completions)
    app.post("/v1/chat/completions")(server.chat)
    return app
