"""Around `PreTrainedModel._load_pretrained_model`: hand it lazy tensors that sllm is reading.

Everything else (renaming, fusing experts, casting, placing, tying, reports) stays transformers' own
code, which is why the results are the same.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from sllm.errors import CorruptCheckpointError, SllmError
from sllm_transformers.decline import reason_to_decline
from sllm_transformers.files import checkpoint_of
from sllm_transformers.lazy import TensorSource
from sllm_transformers.selection import select
from sllm_transformers.switch import Options, active_options

logger = logging.getLogger("sllm_transformers")

_ARGUMENTS = {"model", "state_dict", "checkpoint_files", "load_config"}


class UnknownSignatureError(Exception):
    """This transformers' function is not the one we know."""


def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement for transformers' function `original`.

    Raises:
        UnknownSignatureError: `original` lacks an argument that we rely on.
    """
    signature = inspect.signature(original)
    if missing := _ARGUMENTS.difference(signature.parameters):
        raise UnknownSignatureError(
            f"transformers' {original.__qualname__} has no argument {sorted(missing)[0]!r}"
        )

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        options = active_options()
        if options is None:
            return original(*args, **kwargs)
        call = signature.bind(*args, **kwargs)
        source = _open_source(call.arguments, options)
        if source is None:
            return original(*args, **kwargs)
        with source:
            call.arguments["state_dict"] = source.state_dict()
            try:
                result = original(*call.args, **call.kwargs)
            except Exception:
                source.raise_error()
                raise
            source.raise_error()
            source.finish()
            return result

    return load


def _open_source(call: Mapping[str, Any], options: Options) -> TensorSource | None:
    """Start reading what `call` needs; None, with the reason logged, leaves it to the stock path.

    Raises:
        sllm.errors.CorruptCheckpointError: the checkpoint is broken.
    """
    model, load_config = call["model"], call["load_config"]
    reason = reason_to_decline(call.get("state_dict"), call["checkpoint_files"], load_config)
    if reason is None:
        try:
            checkpoint = checkpoint_of(call["checkpoint_files"])
            selection = select(model, load_config, checkpoint)
            source = TensorSource(checkpoint, selection, options)
        except CorruptCheckpointError:
            raise
        except SllmError as error:
            reason = str(error)
        else:
            logger.debug(
                "loading %s through sllm: %d of %d tensors read ahead, %.1f MB",
                checkpoint.directory,
                len(selection.ahead),
                len(checkpoint.names),
                checkpoint.nbytes / 1e6,
            )
            return source
    logger.debug("loading %s the stock way: %s", load_config.pretrained_model_name_or_path, reason)
    return None
