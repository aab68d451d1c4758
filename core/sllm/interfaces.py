"""The seams that plugins implement: protocols and plain data, cheap to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Source(Protocol):
    """Where models come from, chosen by the scheme of a URI.

    Attributes:
        name: for records and messages.
        schemes: URI schemes served, without ``://``; a path without a scheme is ``file``.
    """

    name: str
    schemes: Sequence[str]

    def local_path(self, uri: str) -> Path:
        """The directory (or file) on this machine that holds the model, fetched first if need be.

        Raises:
            sllm.SllmError: nothing lies at `uri`, or it cannot be reached.
        """
        ...


@runtime_checkable
class Device(Protocol):
    """Where tensors end up.

    Attributes:
        name: the part of a device string before the colon, e.g. ``cpu``, ``cuda``.
    """

    name: str

    def unavailable(self) -> str | None:
        """None when it can be used, else the reason, for people."""
        ...

    def place(self, data: torch.Tensor, device: str) -> torch.Tensor:
        """Bring one file's bytes to the device.

        Args:
            data: uint8, shape (n,), in host memory.
            device: the device string as given, e.g. ``cuda:1``.

        Returns:
            The same bytes on the device, uint8, shape (n,); `data` itself when it is there already.
        """
        ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do truthfully; the router only uses what is declared.

    Attributes:
        chat, completions, embeddings: which OpenAI routes it serves.
        token_in, token_out: accepts prompt ids, streams generated ids.
        prefix_cache: keeps KV of earlier prompts.
    """

    chat: bool = True
    completions: bool = True
    embeddings: bool = False
    token_in: bool = False
    token_out: bool = False
    prefix_cache: bool = False


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What the router wants started.

    Attributes:
        model: served model name.
        path: model directory.
        host, port: where the engine must listen.
        options: engine options by name, as the user gave them.
    """

    model: str
    path: Path
    host: str
    port: int
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one engine process that serves OpenAI's HTTP API.

    Attributes:
        argv: command line.
        env: variables set on top of the router's own environment.
        ready_path: GET answers 200 once the engine can take requests.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_path: str = "/health"


@runtime_checkable
class Engine(Protocol):
    """A serving framework the router can drive. The router runs and watches the process itself."""

    name: str

    def unavailable(self) -> str | None:
        """None when it can be started here, else the reason, for people. Must not import it."""
        ...

    def capabilities(self) -> Capabilities:
        """What every instance of it can do."""
        ...

    def launch(self, request: LaunchRequest) -> Launch:
        """The process that serves `request`.

        Raises:
            sllm.OptionError: an option the engine does not have.
        """
        ...


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds something will take.

    Attributes:
        mean: expected value.
        upper: about the 90th percentile.
        samples: observations behind it; 0 for a prior.
    """

    mean: float
    upper: float
    samples: int = 0


@runtime_checkable
class Estimator(Protocol):
    """Learns from what happened, predicts what will.

    Kinds and their features: ``load`` (nbytes, tier), ``start`` (engine, model, nbytes).
    """

    name: str

    def observe(self, kind: str, features: Mapping[str, Any], seconds: float) -> None:
        """One thing of this kind took so long."""
        ...

    def predict(self, kind: str, features: Mapping[str, Any]) -> Estimate | None:
        """None when this estimator has nothing to say about that kind."""
        ...


@dataclass(frozen=True, slots=True)
class Instance:
    """A running or starting engine, as a placement policy sees it.

    Attributes:
        id, model, engine: identity.
        running: requests in flight.
        idle_seconds: time since its last request ended; 0 while busy.
        restart: estimated seconds to bring it back after stopping it.
    """

    id: str
    model: str
    engine: str
    running: int
    idle_seconds: float
    restart: Estimate


@dataclass(frozen=True, slots=True)
class PlacementState:
    """Everything a policy may look at; it has no clock and does no I/O.

    Attributes:
        model: the model that needs an instance.
        instances: those that exist.
        capacity: how many may run at once.
    """

    model: str
    instances: Sequence[Instance]
    capacity: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do for a model without an instance.

    Attributes:
        action: ``start``, ``evict`` (stop `victim`, then start) or ``wait``.
        victim: instance id to stop.
        reason: for people.
    """

    action: str
    victim: str | None = None
    reason: str = ""


@runtime_checkable
class PlacementPolicy(Protocol):
    """Decides where a model starts. Pure: state in, decision out."""

    name: str

    def decide(self, state: PlacementState) -> Decision:
        """Choose for `state.model`."""
        ...
