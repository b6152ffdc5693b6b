"""One rank of a job that `Run.job` started.

Arguments: the benchmark, the job, the file for the value of rank 0, the options as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.shared.registry import find_benchmark
from benchmarks.shared.run import run_on_rank
from pipepar.comm.group.launcher import is_launched_root


def main() -> None:
    """Run the job; rank 0 writes its value. *Collective.*"""
    name, job, result, options = sys.argv[1:]
    value = run_on_rank(find_benchmark(name), job, json.loads(options))
    if is_launched_root():
        Path(result).write_text(json.dumps(value))


if __name__ == "__main__":
    main()
