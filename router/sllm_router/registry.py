"""The models a router serves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sllm
from sllm import plugins
from sllm.errors import CheckpointError, CheckpointNotFoundError, EngineError, OptionError
from sllm.interfaces import Engine, LaunchRequest
from sllm.loader.resolve import resolve
from sllm_router.errors import UnknownModelError


@dataclass(frozen=True, slots=True)
class Model:
    """One served model.

    Attributes:
        name: what clients ask for.
        path: model directory.
        engine: what runs it.
        options: engine options, as given.
        nbytes: size of its data files.
        created: Unix time at which it was registered.
    """

    name: str
    path: Path
    engine: Engine
    options: Mapping[str, str] = field(default_factory=dict)
    nbytes: int = 0
    created: int = field(default_factory=lambda: int(time.time()))


class Registry:
    """Models by name."""

    def __init__(self, models: Iterable[Model] = ()) -> None:
        self._models: dict[str, Model] = {}
        for model in models:
            self.add(model)

    def add(self, model: Model) -> None:
        """Register one.

        Raises:
            OptionError: the name is taken.
        """
        other = self._models.get(model.name)
        if other is not None:
            raise OptionError(
                f"two models are called {model.name!r}: {other.path} and {model.path}",
                hint="name one of them: NAME=DIR",
            )
        self._models[model.name] = model

    def get(self, name: str) -> Model:
        """The model of that name.

        Raises:
            UnknownModelError: there is none.
        """
        try:
            return self._models[name]
        except KeyError:
            known = ", ".join(sorted(self._models))
            raise UnknownModelError(
                f"the model {name[:200]!r} does not exist; served here: {known}", param="model"
            ) from None

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)


def split_name(argument: str) -> tuple[str | None, str]:
    """``NAME=DIR`` to its parts; the name is None when the argument is only a place."""
    name, equals, place = argument.partition("=")
    if not equals or "/" in name or Path(argument).exists():
        return None, argument
    return name, place


def describe_model(argument: str, engine: Engine, options: Mapping[str, str]) -> Model:
    """Read and check the model that ``DIR`` or ``NAME=DIR`` stands for.

    Raises:
        sllm.SllmError: it cannot be served as it is.
    """
    name, place = split_name(argument)
    found, _ = resolve(place)
    # Not resolved: a link's own name is what its owner calls the model.
    path = Path(os.path.abspath(found))  # noqa: PTH100
    if not path.is_dir():
        raise CheckpointNotFoundError(
            "not a directory", path=path, hint="name a model directory with a config.json"
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(
            "no config.json", path=path, hint="engines need a model in Hugging Face layout"
        )
    checkpoint = sllm.read_checkpoint(path)
    model = Model(name or path.name, path, engine, options, checkpoint.nbytes)
    # Nothing starts here; an option that the engine does not have is better known now.
    engine.launch(LaunchRequest(model.name, path, "127.0.0.1", 0, options))
    return model


def choose_engine(name: str | None) -> Engine:
    """The engine called `name`, or the first that can run here (vLLM before others).

    Raises:
        OptionError: there is no such engine.
        EngineError: it cannot run here; the message says why.
    """
    if name is not None:
        engine: Engine = plugins.named("sllm_engines", name)
        reason = engine.unavailable()
        if reason is not None:
            raise EngineError(f"the engine {name!r} cannot run here: {reason}")
        return engine
    reasons = []
    for engine in sorted(plugins.each("sllm_engines"), key=lambda engine: engine.name != "vllm"):
        reason = engine.unavailable()
        if reason is None:
            return engine
        reasons.append(f"{engine.name}: {reason}")
    raise EngineError(
        f"no engine can run here ({'; '.join(reasons) or 'none is installed'})",
        hint="install one: pip install 'sllm[vllm]' or 'sllm[transformers]'",
    )
