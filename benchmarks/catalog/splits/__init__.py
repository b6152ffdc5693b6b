"""Costs and splits that other systems published, and the splits of pipepar."""

from benchmarks.catalog.splits.benchmark import BENCHMARK as BENCHMARK
