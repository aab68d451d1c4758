"""One measurement, in a process of its own: prints one line of JSON.

Run as ``python -m sllm_bench.from_pretrained.sample WHAT LOADER DIR``. `LOADER` only matters to
`load`; for `logits` the environment decides, as it would for a program that knows nothing of sllm.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

PAGE = 4096


def touch(model: Any) -> int:
    """Read one byte of every page of every weight; returns the number of pages."""
    import torch

    pages = 0
    for tensor in (*model.parameters(), *model.buffers()):
        data = tensor.detach().reshape(-1).view(torch.uint8)[::PAGE]
        data.sum(dtype=torch.int64)
        pages += data.numel()
    return pages


def load(loader: str, directory: str) -> dict[str, float]:
    """Seconds of `from_pretrained` and of touching every page, after all imports.

    ``cpu`` is processor time: on a busy machine it says more than the clock does.
    """
    if loader == "sllm":
        import sllm_transformers

        sllm_transformers.enable()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        # Imports the model's classes, which from_pretrained would otherwise do.
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    busy = time.process_time()
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    loaded = time.perf_counter()
    touch(model)
    touched = time.perf_counter()
    return {
        "load": loaded - started,
        "touch": touched - loaded,
        "total": touched - started,
        "cpu": time.process_time() - busy,
    }


def logits(directory: str) -> dict[str, float]:
    """Wall-clock times of the steps from imports to the first logits."""
    import torch
    from transformers import AutoModelForCausalLM

    imported = time.time()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    loaded = time.time()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 11)[None]).logits.float().sum().item()
    now = time.time()
    return {"imported": imported, "loaded": loaded, "logits": now, "cpu": time.process_time()}


if __name__ == "__main__":
    what, loader, directory = sys.argv[1:]
    print(json.dumps(load(loader, directory) if what == "load" else logits(directory)))
