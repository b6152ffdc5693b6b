"""Benchmarks: each a module to run, each printing its own figures."""
