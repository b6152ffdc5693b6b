"""Finds the benchmarks: each file or package of `catalog` defines one as ``BENCHMARK``."""

from __future__ import annotations

from benchmarks import catalog
from benchmarks.shared.benchmark import Benchmark
from pipepar.discovery import load, names_in


def benchmark_names() -> list[str]:
    """Return the names of all benchmarks, sorted, without importing their files."""
    return [module.replace("_", "-") for module in names_in(catalog)]


def find_benchmark(name: str) -> Benchmark:
    """Import and return a benchmark.

    Args:
        name: one of `benchmark_names`.
    """
    benchmark: Benchmark = load(catalog, name.replace("-", "_"), "BENCHMARK")
    return benchmark
