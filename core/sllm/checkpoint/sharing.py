"""Which tensors of a state dict share memory, and what is stored so that they share it again.

Every byte of memory is stored once. Tensors are compared by their addresses, so that sharing
across storages counts too. See docs/format.md, "Ties and views".
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sllm.checkpoint.base import STORAGE_PREFIX, View
from sllm.checkpoint.dtypes import FROM_TORCH
from sllm.checkpoint.views import row_major, span
from sllm.errors import UnsupportedFormatError

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class Storing:
    """What to write for a state dict.

    Attributes:
        tensors: stored tensors by name, in order; each is written contiguously.
        views: the others.
        ties: names of `views` that equal their base entirely (tied weights) -> base.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Member:
    """A named tensor and the addresses it touches: bytes [begin, end) of its device's memory."""

    name: str
    tensor: torch.Tensor
    begin: int
    end: int

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for tensors that are the same elements in the same order."""
        tensor = self.tensor
        steps = tuple(
            step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1
        )
        return (self.begin, tensor.dtype, tuple(tensor.shape), steps)


def plan_storing(state: Mapping[str, torch.Tensor], avoid: Collection[str] = ()) -> Storing:
    """Decide which tensors are stored and which are views of those.

    Args:
        state: tensors by name, all with memory.
        avoid: names that should not be the stored one of several tied ones.
    """
    storing = Storing()
    clusters = _clusters(state, avoid)
    shared = {member.name: cluster for cluster in clusters for member in cluster}
    done: set[int] = set()
    for name, tensor in state.items():
        cluster = shared.get(name)
        if cluster is None:
            storing.tensors[name] = tensor
        elif id(cluster) not in done:
            done.add(id(cluster))
            _store_cluster(cluster, storing)
    return storing


def _clusters(state: Mapping[str, torch.Tensor], avoid: Collection[str]) -> list[list[_Member]]:
    """Groups of two and more tensors whose memory overlaps; preferred names first."""
    by_device: dict[torch.device, list[_Member]] = {}
    order = {name: (name in avoid, number) for number, name in enumerate(state)}
    for name, tensor in state.items():
        if tensor.numel():
            begin = tensor.data_ptr()
            length = span(tuple(tensor.shape), tensor.stride()) * tensor.element_size()
            member = _Member(name, tensor, begin, begin + length)
            by_device.setdefault(tensor.device, []).append(member)
    clusters: list[list[_Member]] = []
    for members in by_device.values():
        members.sort(key=lambda member: (member.begin, member.end))
        reached = -1
        for member in members:
            if member.begin < reached:
                clusters[-1].append(member)
            else:
                clusters.append([member])
            reached = max(reached, member.end)
    return [
        sorted(cluster, key=lambda member: order[member.name])
        for cluster in clusters
        if len(cluster) > 1
    ]


def _store_cluster(cluster: list[_Member], storing: Storing) -> None:
    same: dict[tuple[object, ...], list[_Member]] = {}
    for member in cluster:
        same.setdefault(member.identity, []).append(member)
    chosen = [members[0] for members in same.values()]
    if len(chosen) == 1:
        storing.tensors[chosen[0].name] = chosen[0].tensor
    else:
        _store_overlapping(chosen, storing)
    for first, *others in same.values():
        for other in others:
            _tie(first, other, storing)


def _tie(first: _Member, other: _Member, storing: Storing) -> None:
    if first.name in storing.views:
        storing.views[other.name] = storing.views[first.name]
        return
    tensor = first.tensor
    shape = tuple(tensor.shape)
    dtype = FROM_TORCH[str(tensor.dtype).removeprefix("torch.")]
    storing.views[other.name] = View(first.name, dtype, shape, row_major(shape), 0)
    storing.ties[other.name] = first.name


def _store_overlapping(members: list[_Member], storing: Storing) -> None:
    """Different tensors over the same memory: store what covers it, view the rest."""
    begin = min(member.begin for member in members)
    end = max(member.end for member in members)
    cover = next(
        (m for m in members if (m.begin, m.end) == (begin, end) and m.tensor.is_contiguous()),
        None,
    )
    if cover is not None:
        base, rest = cover.name, [member for member in members if member is not cover]
        storing.tensors[base] = cover.tensor
    elif memory := _memory(members, begin, end):
        number = sum(name.startswith(STORAGE_PREFIX) for name in storing.tensors)
        base, rest = f"{STORAGE_PREFIX}{number}", members
        storing.tensors[base] = memory[0]
    else:
        storing.tensors.update((member.name, member.tensor) for member in members)
        return
    for member in rest:
        size = member.tensor.element_size()
        offset = member.begin - begin
        if offset % size or (end - begin) % size:
            storing.tensors[member.name] = member.tensor  # lies across the base's elements
            continue
        storing.views[member.name] = View(
            base,
            FROM_TORCH[str(member.tensor.dtype).removeprefix("torch.")],
            tuple(member.tensor.shape),
            tuple(member.tensor.stride()),
            offset // size,
        )


def _memory(members: list[_Member], begin: int, end: int) -> tuple[torch.Tensor] | None:
    """All the memory that the members touch as one flat tensor; None where it is not worth it.

    Worth it is one dtype, one storage, and not more bytes than the tensors stored one by one.
    """
    first = members[0].tensor
    storage = first.untyped_storage().data_ptr()
    size = first.element_size()
    alike = all(
        member.tensor.dtype == first.dtype
        and member.tensor.untyped_storage().data_ptr() == storage
        and (member.begin - begin) % size == 0
        for member in members
    )
    apart = sum(member.tensor.numel() * size for member in members)
    if not alike or end - begin > apart:
        return None
    return (first.as_strided(((end - begin) // size,), (1,), (begin - storage) // size),)


def check_storable(state: Mapping[object, object]) -> dict[str, torch.Tensor]:
    """The state dict with every entry known to be a plain tensor with memory, detached.

    Raises:
        UnsupportedFormatError: names the entry and what is the matter with it.
    """
    return {_check_name(name): _check(str(name), value) for name, value in state.items()}


def _check_name(name: object) -> str:
    if not isinstance(name, str):
        raise UnsupportedFormatError(f"a tensor's name must be a string, not {name!r:.80}")
    if name == "__metadata__" or name.startswith(STORAGE_PREFIX):
        raise UnsupportedFormatError("the name is reserved", tensor=name, hint="rename the tensor")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UnsupportedFormatError("the name is not valid Unicode", tensor=name) from None
    return name


def _check(name: str, value: object) -> torch.Tensor:
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    def refuse(what: str, hint: str) -> UnsupportedFormatError:
        return UnsupportedFormatError(what, tensor=name, hint=hint)

    if not isinstance(value, torch.Tensor):
        raise refuse(
            f"a {type(value).__name__}, not a tensor", "leave it out, or turn it into a tensor"
        )
    if value.is_meta or _is_fake(value):
        raise refuse("on the meta device or fake: no values", "load the weights before saving")
    if is_traceable_wrapper_subclass(value):
        raise refuse(
            f"a {type(value).__name__}, which is more than one plain tensor",
            "gather or unpack it first (a DTensor: .full_tensor())",
        )
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise refuse("sparse, nested or quantised by torch", "make it a plain tensor (.to_dense())")
    if str(value.dtype).removeprefix("torch.") not in FROM_TORCH:
        raise refuse(f"safetensors has no dtype for {value.dtype}", "convert it to another dtype")
    # Lazily conjugated or negated tensors hold other bytes than they show.
    tensor = value.detach().resolve_conj().resolve_neg()
    if tensor.numel() and tensor.data_ptr() == 0:
        raise refuse("no memory behind it", "it was released or offloaded: load it again")
    return tensor


def _is_fake(value: torch.Tensor) -> bool:
    module = sys.modules.get("torch._subclasses.fake_tensor")  # not there, then no fakes either
    return module is not None and isinstance(value, module.FakeTensor)


def names_to_avoid(tied: object) -> Iterable[str]:
    """Names that Transformers expects to be dropped, from a model's ``all_tied_weights_keys``."""
    return [str(name) for name in tied] if isinstance(tied, Mapping) else []
