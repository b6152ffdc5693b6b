"""Mutation testing: puts one small bug at a time into pipepar, and counts those that tests detect.

Mutants exist only in the memory of processes that are forked from this one after it has imported
torch. So no source file changes, and a mutant takes seconds. The sample of each part is drawn with
a seed, so that scores are comparable.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.helpers.cluster.rank_files import run_files
from tests.mutation.mutants import ROOT, Mutant, mutants_of
from tests.mutation.parts import PARTS, Part
from tests.mutation.plugin import VARIABLE, install

LANES = 2
"""Mutants that are tested at the same time."""
GRACE = 30
"""Seconds beyond the limit of a part, in which mpirun enforces its own limit."""


def main() -> int:
    """Print a row for each part, and to stderr the mutants that no test detected.

    Returns:
        1 if the tests fail without a mutant, else 0.
    """
    options = _parse_arguments()
    torch.set_num_threads(1)
    print("| part | killed | tried | of | score |\n|---|---|---|---|---|", flush=True)
    for name in options.parts or PARTS:
        part = PARTS[name]
        every = [mutant for module in part.modules for mutant in mutants_of(module)]
        count = len(every) if options.all else min(options.count, len(every))
        some = random.Random(options.seed).sample(every, count)
        if _outcomes(part, [None]) != [True]:
            print(f"the tests of {name} fail without a mutant: {' '.join(part.tests)}")
            return 1
        survived = [
            mutant for mutant, passed in zip(some, _outcomes(part, some), strict=True) if passed
        ]
        killed = len(some) - len(survived)
        score = f"{killed / max(len(some), 1):.0%}"
        print(f"| {name} | {killed} | {len(some)} | {len(every)} | {score} |", flush=True)
        print(*(f"not detected: {mutant}" for mutant in survived), sep="\n", file=sys.stderr)
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    known = ", ".join(PARTS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{known} (default: all)")
    parser.add_argument("--count", type=int, default=25, help="mutants per part (%(default)s)")
    parser.add_argument("--all", action="store_true", help="test every mutant")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (%(default)s)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"found {', '.join(unknown)}, expected parts of {known}")
    return options


def _outcomes(part: Part, mutants: Sequence[Mutant | None]) -> list[bool]:
    """Return for each mutant whether the part's tests pass; None means no mutant."""
    waiting = list(enumerate(mutants))[::-1]
    running: dict[int, tuple[int, float]] = {}
    passed = [False] * len(mutants)
    while waiting or running:
        while waiting and len(running) < (1 if part.ranks else LANES):
            at, mutant = waiting.pop()
            running[_forked(part, mutant)] = (at, time.monotonic() + part.seconds + GRACE)
        for process, (at, deadline) in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if not ended and time.monotonic() < deadline:
                continue
            if not ended:  # a mutant that hangs counts as detected
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
            passed[at] = bool(ended) and status == 0
            del running[process]
        time.sleep(0.02)
    return passed


def _forked(part: Part, mutant: Mutant | None) -> int:
    """Fork a process that exits with 0 if the part's tests pass; it leads a process group."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        status = _run_tests(part, mutant)
    finally:
        os._exit(status)


def _run_tests(part: Part, mutant: Mutant | None) -> int:
    """Run the part's tests with a mutant in this forked process and return the exit status."""
    name = f"{mutant.module}:{mutant.index}" if mutant else None
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        if part.ranks:
            env = {VARIABLE: name, "PYTEST_PLUGINS": "tests.mutation.plugin"} if name else {}
            files = [ROOT / test for test in part.tests]
            return run_files(files, part.ranks, Path(folder), part.seconds, env=env).status
        if name:
            install(name)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp"]
        return int(pytest.main([*part.tests, *options, f"{folder}/tests"]))


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
