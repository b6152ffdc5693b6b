"""The command line of the benchmarks.

python -m benchmarks                   # list the benchmarks
python -m benchmarks NAME [options]    # run one; --publish stores its figures
python -m benchmarks readme            # write benchmarks/README.md anew
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mpi4py

from benchmarks.shared.benchmark import Benchmark, BenchmarkError
from benchmarks.shared.readme import README, publish, readme
from benchmarks.shared.registry import benchmark_names, find_benchmark
from benchmarks.shared.run import Run, signals_unwind
from pipepar.comm.group.launcher import is_launched_root, launched


def main(arguments: Sequence[str]) -> int:
    """Run a command and return the exit status."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_listing(), end="")
    elif name == "readme":
        README.write_text(readme(), encoding="utf-8")
    elif name in benchmark_names():
        return _run(name, arguments[1:])
    else:
        expected = ", ".join(benchmark_names())
        print(f"found benchmark {name!r}, expected readme or one of {expected}", file=sys.stderr)
        return 2
    return 0


def _run(name: str, arguments: Sequence[str]) -> int:
    benchmark = find_benchmark(name)
    options = _parser(name, benchmark).parse_args(arguments)
    try:
        if launched() and not benchmark.launchable:
            raise BenchmarkError("it starts its ranks itself; run it without mpirun or srun", 2)
        run = Run(name, benchmark, options)
        with signals_unwind():
            benchmark.measure(run)
    except BenchmarkError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.status
    run.report.close()
    if options.publish and is_launched_root():
        publish(name, run.report.markdown())
        README.write_text(readme(), encoding="utf-8")
    return 0


def _parser(name: str, benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=f"{benchmark.question} ({benchmark.duration})",
        epilog="\n".join(["goals:", *(f"  {goal}" for goal in benchmark.goals)])
        if benchmark.goals
        else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option in benchmark.options:
        option.add_to(parser)
    parser.add_argument(
        "--publish", action="store_true", help=f"store the figures for {README.name}"
    )
    return parser


def _listing() -> str:
    lines = [(__doc__ or "").partition("\n\n")[2]]
    for name in benchmark_names():
        benchmark = find_benchmark(name)
        lines.append(f"{name:12}  {benchmark.question} ({benchmark.duration})\n")
    return "".join(lines)


if __name__ == "__main__":
    mpi4py.rc.initialize = launched()  # only the version of the library is needed here
    sys.exit(main(sys.argv[1:]))
