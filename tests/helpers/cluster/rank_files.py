"""Runs test files whose tests need several ranks, all of them under one mpirun."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.cluster.mpirun import Finished, finish, mpirun, start

NOTHING = 5
"""The exit status of pytest if no test is selected."""


def run_files(
    files: Sequence[Path],
    ranks: int,
    tmp_path: Path,
    seconds: float,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run test files under one mpirun, and return its status and output.

    A hang ends with the stacks of all ranks. With `-m mpi4py`, a rank that fails ends the others,
    which would otherwise wait for it.

    Args:
        files: the files, with tests marked `mpi`.
        ranks: the number of ranks.
        tmp_path: the folder for the temporary folder of each rank.
        seconds: the time limit for all files.
        options: options of pytest, such as `-k` and `-m`.
        env: additional environment variables.
    """
    # No capture: the captured output of a rank that aborts the job would be lost.
    usual = ["--only-mpi", "-x", "-v", "-rs", "--color=no", "--capture=no"]
    usual += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={tmp_path}/rank"]
    usual += ["-o", f"faulthandler_timeout={seconds - 20}"]
    python = [sys.executable, "-m", "mpi4py", "-m", "pytest", *map(str, files), *usual, *options]
    # mpirun tags each line with the rank.
    return finish(start([*mpirun(ranks, "--output", "tag"), *python], env), seconds)


def failures(
    files: Sequence[Path], ranks: int, tmp_path: Path, seconds: float, marks: str | None = None
) -> str:
    """Run all files together; return a report of the failures, empty if there are none.

    After a failure each file is run alone, so that the report has all files that fail.
    """
    options = [] if marks is None else ["-m", marks]
    together = run_files(files, ranks, tmp_path, seconds, options)
    if together.status == 0 and passed(together):
        return ""
    reports = [f"together, {ranks} ranks:\n{together.output[-6000:]}"]
    for file in files:
        (folder := tmp_path / file.stem).mkdir()
        alone = run_files([file], ranks, folder, seconds, options)
        if alone.status not in (0, NOTHING):
            reports.append(f"{file.name} alone, {ranks} ranks:\n{alone.output[-6000:]}")
    return "\n\n".join(reports)


def passed(ended: Finished) -> int:
    """Return the number of passed tests, the maximum over the ranks."""
    return max(map(int, re.findall(r"(\d+) passed", ended.output)), default=0)
