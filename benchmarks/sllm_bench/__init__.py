"""Measurements and the models they are made on. Not imported by anything else in sllm."""
