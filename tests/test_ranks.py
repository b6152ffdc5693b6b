"""Runs every file of tests/ranks under mpirun with 1, 2, 3 and 4 ranks.

Those files are not collected by a plain pytest, which has no ranks. A hang ends by itself, with the
stacks of every rank; `-m mpi4py` lets a rank that fails end those that wait for it.
"""

import sys
from pathlib import Path

import pytest

from benchmarks.ranks import finish, mpirun, start

SECONDS = 240
FILES = sorted((Path(__file__).parent / "ranks").glob("ranks_*.py"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_ranks(file: Path, ranks: int, tmp_path: Path) -> None:
    options = ["--only-mpi", "-x", "-q", "--color=no", "--show-capture=no"]
    options += ["-p", "no:cacheprovider"]
    options += ["-o", f"faulthandler_timeout={SECONDS - 20}", f"--basetemp={tmp_path}/rank"]
    python = [sys.executable, "-m", "mpi4py", "-m", "pytest", str(file), *options]
    job = start([*mpirun(ranks, "--output", "tag"), *python])
    ended = finish(job, SECONDS)
    assert ended.status == 0, f"{file.name} with {ranks} ranks:\n{ended.output[-6000:]}"
    # Ranks number their lines; a run that tested nothing on rank 0 would prove nothing.
    assert " passed" in ended.output or " skipped" in ended.output, ended.output[-2000:]
