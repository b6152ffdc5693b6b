"""Puts small bugs into the product, one at a time, and counts those that its tests notice.

Mutants live in memory, in processes forked from this one, which has imported torch once: no source
file changes, and a mutant takes seconds. The sample of each part is drawn with a seed, so that
scores can be compared.
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
"""Mutants that are tried at the same time."""
GRACE = 30
"""Seconds in which mpirun, which has a limit of its own, ends its ranks."""


def main() -> int:
    """Print a row for each part, and to stderr the mutants that no test noticed.

    Returns:
        1 if the tests fail without a mutant, else 0.
    """
    options = _parsed()
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
        print(*(f"unnoticed: {mutant}" for mutant in survived), sep="\n", file=sys.stderr)
    return 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--count", type=int, default=25, help="mutants of a part (%(default)s)")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (%(default)s)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    return options


def _outcomes(part: Part, mutants: Sequence[Mutant | None]) -> list[bool]:
    """Whether the part's tests pass with each mutant in turn; None stands for no mutant."""
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
            if not ended:  # it hangs: noticed
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
            passed[at] = bool(ended) and status == 0
            del running[process]
        time.sleep(0.02)
    return passed


def _forked(part: Part, mutant: Mutant | None) -> int:
    """The id of a process, leader of a group, that ends with 0 if the part's tests pass."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        status = _tried(part, mutant)
    finally:
        os._exit(status)


def _tried(part: Part, mutant: Mutant | None) -> int:
    """The exit status of the part's tests with a mutant; never returns to the caller's loop."""
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
