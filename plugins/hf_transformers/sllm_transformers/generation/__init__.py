"""Token-level generation with a transformers model: one request at a time, tokens as they come."""

from sllm_transformers.generation.model import LanguageModel
from sllm_transformers.generation.params import SamplingParams
from sllm_transformers.generation.worker import Generation, Piece, Worker

__all__ = ["Generation", "LanguageModel", "Piece", "SamplingParams", "Worker"]
