"""One thread that generates for everybody, in the order in which they came."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sllm.errors import EngineError
from sllm_transformers.generation.model import LanguageModel, StopGeneration
from sllm_transformers.generation.params import SamplingParams
from sllm_transformers.generation.text import IncrementalDetokenizer, StopScanner

logger = logging.getLogger("sllm_transformers")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token, or the end, brought.

    Attributes:
        token_ids: new tokens; the text may lag behind them.
        text: new text.
        finish_reason: ``stop`` or ``length`` on the last piece, else None.
        error: why the generation failed; then it is the last piece.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: str | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Generation:
    """One request.

    Attributes:
        prompt_ids: token ids, at least one.
        emit: called from the worker's thread with every piece.
        cancelled: set it to end the generation at the next token; nothing more is emitted.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    emit: Callable[[Piece], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Runs generations one at a time, first come, first served."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._queue: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._busy = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sllm-generate", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Generations under way: 0 or 1."""
        return int(self._busy)

    @property
    def waiting(self) -> int:
        """Generations that have not begun."""
        return self._queue.qsize()

    def submit(self, generation: Generation) -> None:
        """Queue it.

        Raises:
            sllm.errors.EngineError: the worker is closed.
        """
        if self._closed.is_set():
            raise EngineError("the engine is shutting down")
        self._queue.put(generation)

    def stop(self) -> None:
        """End the running generation at its next token and those that wait; does not block."""
        self._closed.set()
        self._queue.put(None)

    def close(self) -> None:
        """`stop()`, then wait for the thread."""
        self.stop()
        self._thread.join()

    def _loop(self) -> None:
        while (generation := self._queue.get()) is not None:
            if self._closed.is_set():
                generation.emit(Piece(error=EngineError("the engine is shutting down")))
            elif not generation.cancelled.is_set():
                self._busy = True
                self._run(generation)
                self._busy = False

    def _run(self, generation: Generation) -> None:
        started = time.monotonic()
        output = _Output(generation, self.model, self._closed)
        try:
            self.model.generate(generation.prompt_ids, generation.params, output.on_token)
            output.end()
        except Exception as error:
            logger.exception("a generation failed")
            generation.emit(Piece(error=error))
        logger.info(
            "%d prompt tokens, %d generated in %.2f s%s",
            len(generation.prompt_ids),
            output.count,
            time.monotonic() - started,
            " (cancelled)" if generation.cancelled.is_set() else "",
        )


class _Output:
    """The output of one generation while it grows.

    Attributes:
        count: tokens so far.
    """

    def __init__(
        self, generation: Generation, model: LanguageModel, closed: threading.Event
    ) -> None:
        self._generation = generation
        self._closed = closed
        self._eos_ids = frozenset[int]() if generation.params.ignore_eos else model.eos_ids
        self._detokenizer = IncrementalDetokenizer(model.tokenizer)
        self._scanner = StopScanner(generation.params.stop)
        self._last: int | None = None
        self.count = 0

    def on_token(self, token_id: int) -> None:
        """Turn a token into a piece.

        Raises:
            StopGeneration: a stop string was found, or nobody wants more.
        """
        if self._generation.cancelled.is_set() or self._closed.is_set():
            raise StopGeneration
        self.count += 1
        self._last = token_id
        text = self._scanner.add(self._detokenizer.add(token_id))
        stopped = self._scanner.stopped is not None
        self._generation.emit(Piece((token_id,), text, "stop" if stopped else None))
        if stopped:
            raise StopGeneration

    def end(self) -> None:
        """Emit what was held back and why it ended, unless a stop string has done so."""
        if self._scanner.stopped is not None or self._generation.cancelled.is_set():
            return
        if self._closed.is_set():
            self._generation.emit(Piece(error=EngineError("the engine is shutting down")))
            return
        text = self._scanner.add(self._detokenizer.flush())
        if self._scanner.stopped is None:
            text += self._scanner.flush()
        ended = self._last in self._eos_ids or self._scanner.stopped is not None
        self._generation.emit(Piece((), text, "stop" if ended else "length"))
