"""`save`: a live module or state dict becomes a prepared model."""

from __future__ import annotations

import copy
import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm.checkpoint.base import Checkpoint, TensorInfo
from sllm.checkpoint.dtypes import FROM_TORCH, stored_shape
from sllm.checkpoint.files import os_errors
from sllm.checkpoint.layout import Item, parse_size, plan, split
from sllm.checkpoint.manifest import read_prepared
from sllm.checkpoint.output import (
    CHUNK_SIZE,
    Progress,
    check_space,
    write_files,
    write_index,
    write_manifest,
)
from sllm.checkpoint.sharing import Storing, check_storable, names_to_avoid, plan_storing
from sllm.checkpoint.staging import staged
from sllm.checkpoint.writer import ChunkWriter
from sllm.errors import OptionError

if TYPE_CHECKING:
    import torch


def save(
    state_dict_or_module: Mapping[str, torch.Tensor] | torch.nn.Module,
    directory: str | Path,
    *,
    config: Any = None,
    overwrite: bool = False,
    max_shard_size: int | str | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Write a prepared model from memory, bit by bit; tied weights and views are stored once.

    Of a Transformers model, the configuration and generation configuration are written too, and
    its weights under the names of its published files.

    Args:
        state_dict_or_module: tensors by name, on any device, or a module.
        directory: to create.
        config: for ``config.json``: a mapping, or an object with ``save_pretrained``; a module's
            own by default.
        overwrite: replace the model at `directory`, with every file of it.
        max_shard_size: bytes (or text such as ``5GB``) of tensors a file; one file by default.
        progress: called with (bytes written, bytes in all).

    Returns:
        The prepared checkpoint, read back and checked.

    Raises:
        UnsupportedFormatError: an entry that is no plain tensor with values, or of a dtype that
            safetensors does not have; names it.
        CheckpointError: the directory exists or cannot be written.
        OptionError: an impossible option.
    """
    shard_size = None if max_shard_size is None else parse_size(max_shard_size)
    _check_config(config)
    state, module = _state(state_dict_or_module)
    tied = getattr(module, "all_tied_weights_keys", None)
    storing = plan_storing(check_storable(state), set(names_to_avoid(tied)))
    # As safetensors.torch.save_model writes it: dropped name -> name that holds its bytes.
    metadata = {**storing.ties, "format": "pt"}
    items = [_item(name, tensor) for name, tensor in storing.tensors.items()]
    plans = plan([items] if shard_size is None else split(items, shard_size), metadata)
    path = Path(directory)
    with os_errors(path):
        destination = path.resolve()
    with staged(destination, overwrite=overwrite) as staging:
        check_space(staging, sum(file.size for file in plans))
        files = write_files(
            staging,
            plans,
            _put(storing),
            metadata=metadata,
            chunk_size=CHUNK_SIZE,
            progress=progress,
        )
        write_index(staging, files)
        _write_configs(module, config, staging)
        origin = {"name": type(state_dict_or_module).__name__, "files": {}}
        write_manifest(staging, files, storing.views, origin)
        written = read_prepared(staging)  # before anything is replaced by it
    # Not read again from there: another run may have replaced it by now.
    return written.moved_to(destination)


def _state(source: Any) -> tuple[Mapping[Any, Any], Any]:
    """The state dict, and the module it belongs to if there is one."""
    import torch

    if isinstance(source, torch.nn.Module):
        return _published_names(source, source.state_dict()), source
    if isinstance(source, Mapping):
        return source, None
    raise OptionError(
        f"a {type(source).__name__} cannot be saved", hint="give a module or a mapping of tensors"
    )


def _published_names(module: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A Transformers model's weights as its files have them.

    It fuses some on loading (a mixture's experts) and undoes that when it saves; vLLM knows the
    published names only. Nothing to do for any other module, nor without Transformers.
    """
    if not hasattr(getattr(module, "config", None), "save_pretrained"):
        return state
    for key in getattr(module, "_keys_to_ignore_on_save", None) or ():
        state.pop(key, None)
    loading = sys.modules.get("transformers.core_model_loading")
    revert: Callable[..., dict[str, Any]] | None = getattr(
        loading, "revert_weight_conversion", None
    )
    return state if revert is None else revert(module, state)


def _item(name: str, tensor: torch.Tensor) -> Item:
    dtype = FROM_TORCH[str(tensor.dtype).removeprefix("torch.")]
    nbytes = tensor.numel() * tensor.element_size()
    return Item(name, dtype, stored_shape(dtype, tuple(tensor.shape)), nbytes)


def _put(storing: Storing) -> Callable[[TensorInfo, ChunkWriter, Callable[[int], None]], None]:
    def put(target: TensorInfo, writer: ChunkWriter, advance: Callable[[int], None]) -> None:
        if target.nbytes:
            tensor = storing.tensors[target.name].to("cpu").contiguous()
            memory = (ctypes.c_char * target.nbytes).from_address(tensor.data_ptr())
            writer.write(memoryview(memory).cast("B"))
        advance(target.nbytes)

    return put


def _check_config(config: Any) -> None:
    if not (config is None or isinstance(config, Mapping) or hasattr(config, "save_pretrained")):
        raise OptionError(
            f"config cannot be a {type(config).__name__}",
            hint="give a mapping, or an object with save_pretrained",
        )


def _write_configs(module: Any, config: Any, directory: Path) -> None:
    if config is None:
        config = _own_config(module)
    if isinstance(config, Mapping):
        text = json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
    elif config is not None:
        config.save_pretrained(directory)
    generation: Any = getattr(module, "generation_config", None)
    if hasattr(generation, "save_pretrained"):
        generation.save_pretrained(directory)


def _own_config(module: Any) -> Any:
    """A Transformers model's configuration, completed as its own save_pretrained does."""
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "save_pretrained"):
        return None
    config = copy.deepcopy(config)
    config.architectures = [type(module).__name__]
    dtype = getattr(module, "dtype", None)
    if dtype is not None:
        config.dtype = str(dtype).removeprefix("torch.")
    return config
