"""A causal language model and its tokenizer, loaded through sllm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sllm_transformers
from sllm.errors import EngineError, SllmError
from sllm_transformers.generation.params import SamplingParams

if TYPE_CHECKING:
    from transformers import GenerationConfig

logger = logging.getLogger("sllm_transformers")

NO_TOKEN = -1
"""An id that no token has."""


class StopGeneration(Exception):
    """Raised by a token callback to end the generation at once."""


class _Streamer:
    """Passes generated tokens on, not the prompt's; transformers calls it once a step."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token_id in value.flatten().tolist():
            self._on_token(token_id)

    def end(self) -> None: ...


class LanguageModel:
    """Wraps `model.generate`; not for use from several threads at once.

    Attributes:
        model, tokenizer: transformers' objects.
        context_length: most tokens a prompt and its output may have together; None if unbounded.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        text_config = model.config.get_text_config()
        self.context_length: int | None = getattr(text_config, "max_position_embeddings", None)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> LanguageModel:
        """Load model and tokenizer from a directory.

        Raises:
            sllm.SllmError: the checkpoint is broken, or holds no causal model with a tokenizer.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        shared = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        # device_map needs the package accelerate, and on the CPU there is nothing to map.
        place = {} if device == "cpu" else {"device_map": {"": device}}
        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, **shared)
            with sllm_transformers.enabled():
                model = AutoModelForCausalLM.from_pretrained(
                    directory, dtype=dtype, **place, **shared
                )
        except SllmError:
            raise
        except Exception as error:
            raise EngineError(
                f"transformers cannot load the model: {error}",
                path=directory,
                hint="the transformers engine serves causal language models with a tokenizer",
            ) from error
        return cls(model, tokenizer)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        ids = self.model.generation_config.eos_token_id
        if ids is None:
            return frozenset()
        return frozenset(ids) if isinstance(ids, list) else frozenset({ids})

    def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, on_token: Callable[[int], None]
    ) -> None:
        """Generate, calling `on_token` with each new token id as soon as it is chosen.

        `on_token` may raise `StopGeneration` to end it.

        Args:
            prompt_ids: token ids, at least one.
        """
        import torch

        if params.seed is None:
            torch.seed()
        else:
            torch.manual_seed(params.seed)
        ids = torch.tensor([list(prompt_ids)], device=self.model.device)
        try:
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._config(params),
                streamer=_Streamer(on_token),
            )
        except StopGeneration:
            return

    def _config(self, params: SamplingParams) -> GenerationConfig:
        """What is left None here, transformers fills in from the model's generation config."""
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=params.max_tokens)
        defaults = self.model.generation_config
        config.pad_token_id = next(iter(self.eos_ids), 0)
        if defaults.pad_token_id is not None:
            config.pad_token_id = defaults.pad_token_id
        if params.ignore_eos:
            config.eos_token_id = NO_TOKEN
        config.repetition_penalty = params.repetition_penalty
        temperature = _first(params.temperature, defaults.temperature, 1.0)
        config.do_sample = temperature > 0
        if config.do_sample:
            config.temperature = temperature
            config.top_p = _first(params.top_p, defaults.top_p, 1.0)
            # Left None, transformers would keep to the 50 likeliest tokens; OpenAI's API does not.
            config.top_k = _first(params.top_k, defaults.top_k, 0)
        return config


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
