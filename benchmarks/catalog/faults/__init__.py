"""Jobs that are disturbed, and then resumed."""

from benchmarks.catalog.faults.benchmark import BENCHMARK as BENCHMARK
