"""The instances: who runs, who waits, who has to go."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from sllm.errors import SllmError
from sllm.interfaces import PlacementPolicy, PlacementState
from sllm_router.backoff import Backoff
from sllm_router.errors import (
    QueueFullError,
    StartError,
    StartFailedError,
    UnavailableError,
)
from sllm_router.forecast import Forecast
from sllm_router.instances import Instance, State
from sllm_router.metrics import Metrics
from sllm_router.process import describe_status
from sllm_router.registry import Model
from sllm_router.settings import Settings
from sllm_router.starter import Starter

logger = logging.getLogger("sllm.router")


class Fleet:
    """Hands out instances; starts one per model at most, however many requests ask.

    Everything runs on one event loop: state changes between two awaits are atomic.
    """

    def __init__(
        self,
        settings: Settings,
        policy: PlacementPolicy,
        forecast: Forecast,
        metrics: Metrics,
        starter: Starter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._forecast = forecast
        self._metrics = metrics
        self._starter = starter
        self._clock = clock
        self._backoff = Backoff(clock)
        self._ids = itertools.count(1)
        self._instances: dict[str, Instance] = {}
        self._by_model: dict[str, Instance] = {}
        self._starts: dict[str, asyncio.Task[Instance]] = {}
        self._placing: set[str] = set()
        self._waiting: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._idle_timers: dict[str, asyncio.TimerHandle] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False

    # --- requests

    def take(self, model: Model) -> Instance | None:
        """A ready instance, now counted as busy with one more request; None when there is none."""
        instance = self._by_model.get(model.name)
        if instance is None or instance.state is not State.READY or self._closing:
            return None
        instance.running += 1
        timer = self._idle_timers.pop(instance.id, None)
        if timer is not None:
            timer.cancel()
        return instance

    async def acquire(self, model: Model) -> Instance:
        """As `take`, but waits for an instance to be started first.

        Raises:
            StartFailedError: it cannot be started, now or a short while ago.
            QueueFullError: too many wait already.
            UnavailableError: it took too long, or the router is ending.
        """
        if self._waiting[model.name] >= self._settings.max_queue:
            raise QueueFullError(
                f"{self._settings.max_queue} requests wait for {model.name!r} already",
                retry_after=self._forecast.start(model).mean,
            )
        self._waiting[model.name] += 1
        try:
            return await asyncio.wait_for(
                self._acquire(model), timeout=self._settings.queue_timeout
            )
        except asyncio.TimeoutError:
            raise UnavailableError(
                f"no instance of {model.name!r} became free "
                f"within {self._settings.queue_timeout:g} s",
                retry_after=self._forecast.start(model).mean,
            ) from None
        finally:
            self._waiting[model.name] -= 1
            self._drop_unwanted_start(model.name)

    async def _acquire(self, model: Model) -> Instance:
        while True:
            if self._closing:
                raise UnavailableError("the router is shutting down")
            instance = self.take(model)
            if instance is not None:
                return instance
            start = self.begin_start(model)
            # Shielded: the start serves everybody who waits, not only this request.
            await asyncio.wait({start})
            if start.cancelled():
                continue
            error = start.exception()
            if error is not None:
                raise self._as_answer(model, error)

    def release(self, instance: Instance) -> None:
        """A request taken with `take` or `acquire` has ended."""
        instance.running -= 1
        if instance.running == 0:
            instance.idle_since = self._clock()
            self._notify()
            self._arm_idle_timer(instance)

    async def examine(self, instance: Instance) -> None:
        """Ask an instance how it is; if it is broken, the next request starts another.

        The main process of an engine may live on, and answer, when those that do its work are dead.
        """
        if instance.state is State.READY and await self._starter.is_broken(instance):
            logger.warning("%s does not work any more: replaced", instance.model.name)
            self._retire(instance, "broken")

    def suspect(self, instance: Instance) -> None:
        """As `examine`, without waiting for the answer."""
        self._in_background(self.examine(instance))

    # --- starting

    def begin_start(self, model: Model) -> asyncio.Task[Instance]:
        """The one start of this model: the one under way, or a new one.

        Raises:
            StartFailedError: the last one failed a moment ago.
        """
        task = self._starts.get(model.name)
        if task is None:
            failure = self._backoff.pending(model.name)
            if failure is not None:
                message, seconds = failure
                raise StartFailedError(message, retry_after=seconds)
            task = asyncio.create_task(self._start(model), name=f"start {model.name}")
            self._starts[model.name] = task
            task.add_done_callback(lambda done: self._start_ended(model, done))
        return task

    def _start_ended(self, model: Model, task: asyncio.Task[Instance]) -> None:
        del self._starts[model.name]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._backoff.succeeded(model.name)
            return
        if not isinstance(error, SllmError):
            logger.error("starting %s failed", model.name, exc_info=error)
        message = f"{model.name!r} could not be started: {error}"
        pause = self._backoff.failed(model.name, message)
        logger.warning("%s\n(not tried again within %.0f s)", message, pause)

    def _as_answer(self, model: Model, error: BaseException) -> Exception:
        failure = self._backoff.pending(model.name)
        if failure is not None:
            return StartFailedError(failure[0], retry_after=failure[1])
        return StartFailedError(f"{model.name!r} could not be started: {error}", retry_after=1.0)

    async def _start(self, model: Model) -> Instance:
        await self._make_room(model)
        # No await between the decision that there is room and taking it.
        number = next(self._ids)
        instance = Instance(str(number), model, self._starter.directory(number))
        self._instances[instance.id] = instance
        self._count_states()
        try:
            await self._starter.start(instance)
        except BaseException:
            self._forget(instance)
            raise
        instance.idle_since = self._clock()
        self._by_model[model.name] = instance
        self._in_background(self._watch(instance))
        self._count_states()
        self._notify()
        self._arm_idle_timer(instance)
        return instance

    async def _make_room(self, model: Model) -> None:
        """Until the policy says that an instance of the model may start."""
        self._placing.add(model.name)
        try:
            while True:
                decision = self._policy.decide(self._state(model))
                if decision.action == "start":
                    if len(self._instances) >= self._settings.capacity:
                        raise StartError(f"policy {self._policy.name!r} started beyond capacity")
                    return
                if decision.action == "evict":
                    await self._evict(decision.victim, decision.reason, model)
                else:
                    logger.debug("%s waits: %s", model.name, decision.reason)
                    await self._changed.wait()
        finally:
            self._placing.discard(model.name)

    async def _evict(self, victim: str | None, reason: str, model: Model) -> None:
        instance = self._instances.get(victim or "")
        if (
            instance is None
            or instance.state is not State.READY
            or instance.running
            or self._waiting[instance.model.name]
        ):
            raise StartError(f"policy {self._policy.name!r} evicts {victim!r}, which is not idle")
        logger.info("stopping %s to make room for %s: %s", instance.model.name, model.name, reason)
        # Not to be left half done when nobody wants the start any more.
        await asyncio.shield(self._retire(instance, "evicted"))

    def _state(self, model: Model) -> PlacementState:
        now = self._clock()
        views = [
            instance.view(
                now=now,
                waiting=self._waiting[instance.model.name],
                restart=self._forecast.start(instance.model),
            )
            for instance in self._instances.values()
        ]
        return PlacementState(model.name, views, self._settings.capacity)

    def _drop_unwanted_start(self, name: str) -> None:
        """Nobody waits any more: do not evict anybody for a start that has not begun."""
        if self._waiting[name] == 0 and name in self._placing:
            self._starts[name].cancel()

    # --- stopping

    async def _watch(self, instance: Instance) -> None:
        """Notice when an engine dies by itself."""
        assert instance.process is not None
        status = await instance.process.wait()
        if instance.state is State.READY:
            logger.warning(
                "%s died (%s); its last lines:\n%s",
                *(instance.model.name, describe_status(status), instance.process.log_tail()),
            )
            self._retire(instance, "died")

    def _retire(self, instance: Instance, reason: str) -> asyncio.Task[None]:
        """From now on it gets no requests; the task ends when nothing of it is left."""
        if instance.state is State.READY:
            instance.state = State.STOPPING
            self._by_model.pop(instance.model.name, None)
            self._metrics.stops.labels(instance.model.name, reason).inc()
            self._count_states()
        return self._in_background(self._stop(instance))

    async def _stop(self, instance: Instance) -> None:
        await self._starter.stop(instance)
        self._forget(instance)

    def _forget(self, instance: Instance) -> None:
        self._instances.pop(instance.id, None)
        timer = self._idle_timers.pop(instance.id, None)
        if timer is not None:
            timer.cancel()
        self._count_states()
        self._notify()

    def _arm_idle_timer(self, instance: Instance) -> None:
        keep = self._settings.keep_alive
        if keep is None or instance.running or self._closing or instance.state is not State.READY:
            return
        loop = asyncio.get_running_loop()
        self._idle_timers[instance.id] = loop.call_later(keep, self._idle_too_long, instance)

    def _idle_too_long(self, instance: Instance) -> None:
        self._idle_timers.pop(instance.id, None)
        if instance.running == 0 and not self._waiting[instance.model.name]:
            logger.info("stopping %s: idle", instance.model.name)
            self._retire(instance, "idle")

    def refuse(self) -> None:
        """From now on nobody gets an instance; who waits is told so."""
        self._closing = True
        for timer in self._idle_timers.values():
            timer.cancel()
        self._idle_timers.clear()
        for task in list(self._starts.values()):
            task.cancel()

    async def close(self) -> None:
        """End every engine; nothing of them is left when this returns."""
        self.refuse()
        for instance in list(self._instances.values()):
            logger.info("stopping %s", instance.model.name)
            self._retire(instance, "shutdown")
        # Cancelled starts stop their own processes.
        while pending := [*self._starts.values(), *self._background]:
            await asyncio.wait(pending)
        self._starter.close()

    async def kill(self) -> None:
        """Hurry a `close` that is under way: no more grace for anybody."""
        running = [i.process for i in self._instances.values() if i.process is not None]
        await asyncio.gather(*(process.stop(0) for process in running))

    # --- bookkeeping

    def state_of(self, model: Model) -> str:
        """``ready``, ``starting``, ``stopping`` or ``stopped``."""
        if model.name in self._starts:
            return State.STARTING.value
        for instance in self._instances.values():
            if instance.model.name == model.name:
                return instance.state.value
        return "stopped"

    def _notify(self) -> None:
        """Wake whoever waits for room."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _count_states(self) -> None:
        counts = Counter((i.model.name, i.state.value) for i in self._instances.values())
        self._metrics.instances.clear()
        for labels, count in counts.items():
            self._metrics.instances.labels(*labels).set(count)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
