"""Which tensors of a checkpoint a model will ask for, so that nothing else is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from sllm.checkpoint.base import Checkpoint


@dataclass(frozen=True, slots=True)
class Selection:
    """How the tensors of a checkpoint are supplied.

    Attributes:
        ahead: read from the start, in file order; the others only if asked for.
        tied: views that the model ties to their base: both may be one memory.
    """

    ahead: frozenset[str]
    tied: frozenset[str]


def select(model: Any, load_config: Any, checkpoint: Checkpoint) -> Selection:
    """Choose for `model`, a PreTrainedModel on the meta device.

    What is left out can still be asked for: being wrong costs time, never correctness.

    Args:
        load_config: transformers' LoadStateDictConfig.
    """
    names = set(checkpoint.names)
    keys = model.state_dict().keys()
    on_disk = _disk_test(load_config)
    if on_disk is None:
        # Most checkpoints name their tensors as the model does; only the rest is worth renaming.
        doubtful = names - _named_alike(names, keys, model.base_model_prefix)
    else:
        doubtful = set(names)
    if doubtful:
        target_of = _renamer(model, load_config)
        for name in doubtful:
            target = target_of(name)
            if target not in keys or (on_disk is not None and on_disk(target)):
                names.discard(name)
    return Selection(frozenset(names), _tied(model, checkpoint.views))


def _named_alike(names: Iterable[str], keys: Set[str], prefix: str) -> set[str]:
    """Names that are the model's keys, give or take the base model's prefix."""
    dotted = f"{prefix}."
    return {
        name
        for name in names
        if name in keys or dotted + name in keys or name.removeprefix(dotted) in keys
    }


def _renamer(model: Any, load_config: Any) -> Callable[[str], str]:
    """How transformers renames a checkpoint's key into the model's."""
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    mapping = getattr(load_config, "weight_mapping", None) or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state_dict = model.state_dict()

    def rename(name: str) -> str:
        renamed, _ = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state_dict
        )
        return str(name if renamed not in state_dict and name in state_dict else renamed)

    return rename


def _disk_test(load_config: Any) -> Callable[[str], bool] | None:
    """Whether a model's key is offloaded to disk; None when nothing is."""
    device_map: Mapping[str, Any] = getattr(load_config, "device_map", None) or {}
    if "disk" not in device_map.values():
        return None
    from transformers.integrations.accelerate import get_device

    return lambda key: get_device(device_map, key) == "disk"


def _tied(model: Any, views: Iterable[str]) -> frozenset[str]:
    """Views whose name is (an end of) a key that the model ties."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    keys = {*ties, *ties.values()}
    return frozenset(
        view
        for view in views
        if any(key == view or key.endswith(f".{view}") or view.endswith(f".{key}") for key in keys)
    )
