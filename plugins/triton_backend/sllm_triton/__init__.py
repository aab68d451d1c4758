"""NVIDIA Triton Inference Server. So far only its place among the hooks."""
