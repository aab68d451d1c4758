"""vLLM: `vllm serve DIR --load-format sllm`.

vLLM calls `register` in the API server, the engine core and every worker, before it knows whether
the load format will be used. So nothing here imports torch, vLLM's model code or the native module.
"""

from __future__ import annotations

from sllm.trace import mark

LOAD_FORMAT = "sllm"

_registered = False


def register() -> None:
    """Make the load format known to this process; calling it again does nothing.

    Entry point of the group ``vllm.general_plugins``.
    """
    global _registered
    if _registered:
        return
    _registered = True
    mark("vllm-plugins")
    from sllm_vllm.registration import add_load_format

    add_load_format(LOAD_FORMAT)
