"""`from_pretrained` with and without sllm: ``python -m sllm_bench.from_pretrained DIR``."""
