"""Pipelines on GPUs."""

from benchmarks.catalog.gpu.benchmark import BENCHMARK as BENCHMARK
