"""A small OpenAI-compatible server around one model: ``python -m sllm_transformers.server``."""
