"""The benchmarks: each file or package answers one question."""
