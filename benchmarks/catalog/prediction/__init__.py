"""The predictions of plans, compared with runs."""

from benchmarks.catalog.prediction.benchmark import BENCHMARK as BENCHMARK
