"""What we leave to the stock path, and why."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def reason_to_decline(
    state_dict: Mapping[str, Any] | None, files: Sequence[str] | None, load_config: Any
) -> str | None:
    """Why a call of `_load_pretrained_model` is none of ours; None when it is.

    Args:
        state_dict, files: the call's arguments.
        load_config: transformers' LoadStateDictConfig.
    """
    if state_dict is not None:
        return "the weights were handed over as a state dict"
    if not files:
        return "there are no checkpoint files"
    other = [file for file in files if not str(file).endswith(".safetensors")]
    if other:
        return f"{other[0]} is no safetensors file"
    return _reason_in_config(load_config) or _reason_in_environment(str(files[0]))


def _reason_in_config(load_config: Any) -> str | None:
    quantizer = getattr(load_config, "hf_quantizer", None)
    if quantizer is not None:
        return f"the model is quantised ({type(quantizer).__name__})"
    if getattr(load_config, "device_mesh", None) is not None:
        return "tensor parallelism reads parts of tensors, rank by rank"
    if getattr(load_config, "disable_mmap", None):
        return "disable_mmap was asked for"
    device_map = getattr(load_config, "device_map", None) or {}
    if any(getattr(device, "type", device) == "mps" for device in device_map.values()):
        return "a device in device_map is mps"
    return None


def _reason_in_environment(first_file: str) -> str | None:
    transformers = sys.modules["transformers.modeling_utils"]
    zero3 = getattr(transformers, "is_deepspeed_zero3_enabled", None)
    if zero3 is not None and zero3():
        return "DeepSpeed ZeRO-3 partitions the weights itself"
    on_hf_mount = getattr(transformers, "_is_on_hf_mount", None)
    if on_hf_mount is not None and on_hf_mount(first_file):
        return "the file lies on an hf-mount file system"
    return None
