"""Test files whose tests run on several ranks: one mpirun for all of them."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.cluster.mpirun import Finished, finish, mpirun, start

NOTHING = 5
"""Status of pytest where no test is left to run."""


def run_files(
    files: Sequence[Path],
    ranks: int,
    tmp_path: Path,
    seconds: float,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run test files under one mpirun to their end.

    A hang ends by itself with the stacks of every rank, and `-m mpi4py` lets a rank that fails end
    the others, which would wait for it.

    Args:
        files: whose tests are marked `mpi`.
        ranks: how many.
        tmp_path: below it each rank gets a temporary folder.
        seconds: for all of it.
        options: of pytest, such as `-k` and `-m` with what selects tests.
        env: further environment variables.
    """
    # Nothing is captured: what a rank says that ends the job would be lost with its process.
    usual = ["--only-mpi", "-x", "-v", "-rs", "--color=no", "--capture=no"]
    usual += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={tmp_path}/rank"]
    usual += ["-o", f"faulthandler_timeout={seconds - 20}"]
    python = [sys.executable, "-m", "mpi4py", "-m", "pytest", *map(str, files), *usual, *options]
    # Ranks tag their lines, so that a report says which of them failed.
    return finish(start([*mpirun(ranks, "--output", "tag"), *python], env), seconds)


def failures(
    files: Sequence[Path], ranks: int, tmp_path: Path, seconds: float, marks: str | None = None
) -> str:
    """What fails where all files run together; empty if nothing does.

    After a failure each file runs by itself, so that the report has every file that fails, not only
    the first.
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
    """How many tests passed, on the rank where most did."""
    return max(map(int, re.findall(r"(\d+) passed", ended.output)), default=0)
