"""The model loader that vLLM instantiates for `--load-format sllm`.

It is vLLM's own default loader with another way to read safetensors files. Which files make up a
model (index, `consolidated*`, pattern overrides, downloads from the Hub, secondary weights, shards
without experts of this rank), which parameters must have been initialised, quantisation: all that
is decided in `DefaultModelLoader`, differs from version to version, and must not differ between
`auto` and `sllm`. The seam used is the one function through which every version from 0.24 on reads
safetensors: `safetensors_weights_iterator(files, ...)`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.model_loader import default_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
from vllm.platforms import current_platform

from sllm.errors import CheckpointNotFoundError, EngineError
from sllm_vllm import reading
from sllm_vllm.options import for_device, parse
from sllm_vllm.report import summary
from sllm_vllm.touching import TouchAhead

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.config.load import LoadConfig

    from sllm.loader import Loading
    from sllm.loader.base import LoadRecord

    Weights = Iterator[tuple[str, torch.Tensor]]

# Below "vllm", because that is the logger vLLM configures.
logger = init_logger("vllm.plugins.sllm")

_SEAM = "safetensors_weights_iterator"
_seam_lock = threading.Lock()


@contextmanager
def _files_read_by(reader: Callable[..., Weights]) -> Iterator[Callable[..., Weights]]:
    """While open, vLLM's default loader hands the files it chose to `reader`; yields its own."""
    original = getattr(default_loader, _SEAM, None)
    if original is None:
        raise EngineError(
            "this version of vLLM reads safetensors files in a way that sllm does not know",
            hint="use --load-format auto, or a version of sllm made for this vLLM",
        )
    with _seam_lock:
        setattr(default_loader, _SEAM, reader)
        try:
            yield original
        finally:
            setattr(default_loader, _SEAM, original)


def _ranks() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    return 1


class SllmModelLoader(DefaultModelLoader):  # type: ignore[misc]
    """Streams safetensors models into vLLM's parameters while the rest is still being read.

    Raises (from `__init__`):
        sllm.OptionError: `--model-loader-extra-config` is not what `options.parse` takes.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        given = parse(load_config.model_loader_extra_config)
        super().__init__(
            replace(load_config, load_format="safetensors", model_loader_extra_config={})
        )
        device = load_config.device or current_platform.device_type
        self._options = replace(
            given, load=for_device(given.load, torch.device(device).type, _ranks())
        )
        self._running: tuple[Path, Loading] | None = None
        self._records: list[LoadRecord] = []

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> torch.nn.Module:
        """As in the base class, with reading begun before the model is built."""
        self._begin(vllm_config, model_config)
        try:
            model: torch.nn.Module = super().load_model(vllm_config, model_config, prefix)
            return model
        finally:
            self._drop_running()

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        """Fill the parameters of an initialised model, then say how that went."""
        self._records.clear()
        began = time.perf_counter()
        with TouchAhead(model.parameters()):
            super().load_weights(model, model_config)
        logger.info(summary(self._records, time.perf_counter() - began))
        for record in self._records:
            logger.debug("load record %s", json.dumps(record.as_dict()))

    def _begin(self, vllm_config: VllmConfig, model_config: ModelConfig) -> None:
        """Start reading a local model, and refuse one that cannot be read before it costs time.

        What is read is vLLM's decision and known for certain only once the model object exists;
        `_read` throws this load away if it turns out different.
        """
        folder = Path(model_config.model)
        if not folder.is_dir() or any(folder.glob("consolidated*.safetensors")):
            return
        if vllm_config.parallel_config.enable_expert_parallel:
            return
        try:
            self._running = folder, reading.start(reading.Part(folder), self._options)
        except CheckpointNotFoundError:
            # Some models keep their weights in subdirectories, and tell vLLM so.
            if not any(folder.glob("*/*.safetensors")):
                raise

    def _drop_running(self) -> None:
        if self._running is not None:
            self._running[1].close()
            self._running = None

    def _prepare_weights(
        self,
        model_name_or_path: str,
        subfolder: str | None,
        revision: str | None,
        fall_back_to_pt: bool,
        allow_patterns_overrides: list[str] | None,
    ) -> Any:
        """The files, as `--load-format auto` would choose them among the safetensors ones."""
        # `auto` prefers the files Mistral publishes beside the Hugging Face ones. Anything else
        # must be safetensors: saying so now keeps pickle files from being downloaded in vain.
        mistral = default_loader.list_filtered_repo_files(
            model_name_or_path=model_name_or_path,
            allow_patterns=["consolidated*.safetensors"],
            revision=revision,
        )
        self.load_config.load_format = "mistral" if mistral else "safetensors"
        return super()._prepare_weights(
            model_name_or_path, subfolder, revision, False, allow_patterns_overrides
        )

    def _get_weights_iterator(self, source: DefaultModelLoader.Source) -> Weights:
        asked = False

        def reader(
            files: list[str], use_tqdm: bool, strategy: str | None = None, **more: Any
        ) -> Weights:
            nonlocal asked
            asked = True
            if strategy == "torchao":
                # Tensor subclasses are put together from several stored tensors there.
                logger.warning("torchao checkpoints are read by vLLM's own code, not by sllm")
                return original(files, use_tqdm, strategy, **more)
            return self._read(files, more.get("local_expert_ids"))

        with _files_read_by(reader) as original:
            weights: Weights = super()._get_weights_iterator(source)
        if not asked:
            raise EngineError(
                f"vLLM did not ask for the safetensors files of {source.model_or_path}",
                hint="use --load-format auto, or a version of sllm made for this vLLM",
            )
        return weights

    def _read(self, files: list[str], local_experts: set[int] | None) -> Weights:
        skip = None
        if local_experts is not None:

            def skip(name: str) -> bool:
                return bool(should_skip_weight(name, local_experts))

        todo = reading.parts(files, skip)
        running, self._running = self._running, None
        started = None
        if running is not None:
            if todo[0] == reading.Part(running[0]):
                started = running[1]
            else:
                running[1].close()
        return reading.read(todo, self._options, self._records, started)
