"""Estimators: learn how long loads and starts take, and predict the next ones."""

from __future__ import annotations

from sllm.estimate.median import MedianEstimator

__all__ = ["MedianEstimator"]
