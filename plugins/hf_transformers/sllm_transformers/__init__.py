"""The usual `from_pretrained` and `pipeline()`, with their weights read by sllm.

>>> import sllm_transformers
>>> sllm_transformers.enable()
>>> model = AutoModelForCausalLM.from_pretrained("./model")  # as ever

Importing this package imports neither torch nor transformers, and neither does `enable()`: if
transformers is not imported yet, the hook is put in place at the moment it is.

Loads that sllm does not take over (pickle files, GGUF, quantisation, tensor parallelism, ...) go
down the stock path, and the logger ``sllm_transformers`` says why at debug level.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sllm_transformers import hook, switch

__all__ = ["disable", "enable", "enabled", "is_enabled"]


def enable(**options: Any) -> None:
    """Make `from_pretrained` load through sllm, in the whole process, until `disable()`.

    Calling it again replaces the options.

    Args:
        options: fields of `sllm.LoadOptions`, e.g. ``method="direct"``, ``verify="always"``.

    Raises:
        sllm.errors.OptionError: an option that does not exist or a value it cannot take.
    """
    switch.set_process_wide(switch.checked(options))
    hook.install()


def disable() -> None:
    """Undo `enable()`. Running `enabled()` blocks keep their effect; models stay as they are."""
    switch.set_process_wide(None)
    if not switch.in_use():
        hook.uninstall()


@contextmanager
def enabled(**options: Any) -> Iterator[None]:
    """Like `enable()`, for the code in the ``with`` block only.

    The effect is bound to the current thread (or asyncio task), so blocks in several threads do
    not disturb each other; they may be nested, the innermost options count.

    Raises:
        sllm.errors.OptionError: as `enable()`.
    """
    try:
        with switch.scope(switch.checked(options)):
            hook.install()
            yield
    finally:
        if not switch.in_use():
            hook.uninstall()


def is_enabled() -> bool:
    """Whether a `from_pretrained` right here would be offered to sllm."""
    return switch.active_options() is not None
