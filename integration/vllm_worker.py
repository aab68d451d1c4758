"""Runs vLLM in one process for many tests: an engine start is mostly imports.

Started by `vllm_process.VllmProcess`: reads jobs from standard input, a line of JSON each, and
writes a line for each result to the descriptor named on the command line, apart from vLLM's output.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sllm_bench import vllm_loading

Described = dict[str, list[Any]]


def describe(model: nn.Module) -> Described:
    """dtype, shape and SHA-256 of the bytes of every parameter and buffer."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = [str(tensor.dtype), list(tensor.shape), hashlib.sha256(raw).hexdigest()]
    return found


def way_of(job: dict[str, Any]) -> vllm_loading.Format:
    return vllm_loading.Format(job["format"], extra=job.get("extra", {}))


def filled(job: dict[str, Any]) -> Described:
    """What the loader puts into a model's parameters, before vLLM repacks them.

    With ``reload``, a model that was filled already is spoilt and filled again.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    ranks = job.get("ranks", 1)
    config = vllm_loading.engine_config(
        Path(job["model"]), way_of(job), job.get("dtype", "auto"), ranks
    )
    seen: list[Described] = []
    rendezvous = Path(job["rendezvous"]) if "rendezvous" in job else None
    with vllm_loading.rank_of(config, job.get("rank", 0), ranks, rendezvous):
        if not job.get("reload"):
            vllm_loading.load_model(config, lambda model: seen.append(describe(model)))
            return seen[0]
        with set_current_vllm_config(config), set_default_torch_dtype(config.model_config.dtype):
            model = initialize_model(vllm_config=config)
            loader = vllm_loading.make_loader(config)
            loader.load_weights(model, config.model_config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(7)
            loader.load_weights(model, config.model_config)
        return describe(model)


def tokens(job: dict[str, Any]) -> list[list[int]]:
    """Greedy continuations by a whole engine."""
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm = LLM(
        model=job["model"],
        load_format=job["format"],
        model_loader_extra_config=job.get("extra", {}),
        dtype=job["dtype"],
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=32 << 20,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    try:
        sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        answers = llm.generate(job["prompts"], sampling, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


JOBS = {"filled": filled, "tokens": tokens}


def main() -> None:
    vllm_loading.prepare_environment()
    with os.fdopen(int(sys.argv[1]), "w") as results:
        for line in sys.stdin:
            job = json.loads(line)
            try:
                answer = {"ok": JOBS[job.pop("do")](job)}
            except Exception as error:
                traceback.print_exc()
                kinds = [kind.__name__ for kind in type(error).__mro__]
                answer = {"error": str(error), "kinds": kinds}
            results.write(json.dumps(answer) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
