"""A whole benchmark that a test adds to the catalog as one file."""

from benchmarks.shared.benchmark import Benchmark, BenchmarkError, Goal, Option
from benchmarks.shared.report import Figure
from benchmarks.shared.run import Run

GOAL = Goal("seconds", "at most", 2)


def measure(run: Run) -> None:
    """Report one figure, or fail."""
    if run.options.fail:
        raise BenchmarkError("it is broken", status=3)
    figure = Figure((1.0, 3.0, 2.5))
    run.report.table("a table", ["side", "seconds"], [["ours", figure]])
    run.report.goal(GOAL, figure, "small")


BENCHMARK = Benchmark(
    question="how long is it?",
    duration="no time",
    measure=measure,
    options=(Option("fail", 0, "whether to fail"), Option("sizes", (1, 2), "sizes")),
    goals=(GOAL,),
)
