"""Whether a prediction comes true: jobs planned by what was measured, and then run.

Three architectures on two ranks and on three: one on ranks that nobody disturbs, one with a rank
that shares its core with something else, one over a slow link between two hosts. Each repetition
is a job of its own, with times kept from the first; on the disturbed ranks it takes turns with the
same job cut into as many layers for each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.job import SampleSet
from benchmarks.launch import rank_command, signals_unwind
from benchmarks.report import Figure, Goal, Report, ratio
from tests.helpers.cluster.hosts import Hosts, HostsError, two_hosts
from tests.helpers.cluster.mpirun import finish, mpirun, start

_SECONDS: Final = 300
_MBIT: Final = 200
_COLUMNS: Final = ("predicted/s", "measured/s", "error, %", "micro-batch", "operations", "paces")


@dataclass(frozen=True, slots=True)
class Case:
    """A model and what it runs on."""

    title: str
    """What is special about it."""
    model: str
    """A factory of `architectures`."""
    samples: int
    """How many are computed."""
    shape: tuple[int, ...]
    """Of one sample."""
    tokens: bool = False
    """Whether samples are token ids, not floats."""
    busy: bool = False
    """Whether the last rank has a busy neighbour on its core."""
    slow_link: bool = False
    """Whether the first rank is on another host, behind a slow link."""

    def write_input(self, path: Path) -> None:
        """Random samples, the same each time."""
        draw, shape = np.random.default_rng(0), (self.samples, *self.shape)
        values: npt.NDArray[np.generic] = (
            draw.integers(0, 8000, shape) if self.tokens else draw.random(shape, dtype=np.float32)
        )
        np.save(path, values)


CASES: Final = (
    Case("Llama, undisturbed", "llama", 384, (128,), tokens=True),
    Case("encoder, the last rank's core is shared", "encoder", 192, (128, 384), busy=True),
    Case(f"ResNet-50, {_MBIT} Mbit/s behind rank 0", "resnet", 128, (3, 224, 224), slow_link=True),
)


def run_job(case: Case, ranks: int, folder: Path, hosts: Hosts | None, equal: bool) -> SampleSet:
    """One job, measured, planned and run.

    Raises:
        SystemExit: it failed; with what it printed.
    """
    files = [f"--input={folder / 'in.npy'}", f"--output={folder / 'out.npy'}"]
    files.append(f"--plan={folder / 'plan.json'}")
    options = [f"--model=benchmarks.architectures:{case.model}"]
    options += ["--equal"] if equal else []
    options += [f"--busy={ranks - 1}"] if case.busy else []
    command = rank_command("benchmarks.job", [*options, *files])
    launched = hosts.mpirun(command, (1, ranks - 1)) if hosts else [*mpirun(ranks), *command]
    ended = finish(start(launched, {"XDG_CACHE_HOME": str(folder / "cache")}), _SECONDS)
    lines = [line for line in ended.output.splitlines() if line.startswith("{")]
    if ended.status or not lines:
        raise SystemExit(ended.output)
    return SampleSet(**json.loads(lines[-1]))


def repeated(
    case: Case, ranks: int, repetitions: int, hosts: Hosts | None
) -> list[list[SampleSet]]:
    """For each repetition the planned job, and on a disturbed rank the equal split."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        case.write_input(folder / "in.npy")
        sides = (False, True) if case.busy else (False,)
        return [
            [run_job(case, ranks, folder, hosts, equal) for equal in sides]
            for _ in range(repetitions)
        ]


def forecasts(report: Report, repetitions: int) -> list[Goal]:
    """Run every case, print it, and return what it should reach."""
    goals: list[Goal] = []
    for case in CASES:
        rows: list[list[str | Figure]] = []
        for ranks in (2, 3):
            try:
                turns = _turns(case, ranks, repetitions)
            except HostsError as error:
                report.note(f"{case.title}: no two hosts here: {error}")
                continue
            planned = [turn[0] for turn in turns]
            errors = Figure(tuple(100 * abs(d.predicted / d.measured - 1) for d in planned))
            rows.append(_row(f"{ranks} ranks, planned", planned, errors))
            goals.append(Goal(f"{case.title}, {ranks} ranks: error, %", "at most", 10, errors))
            if case.busy:
                equal = [turn[1] for turn in turns]
                faster = ratio([d.measured for d in planned], [d.measured for d in equal])
                rows.append(_row(f"{ranks} ranks, equal layers", equal, None))
                what = f"{case.title}, {ranks} ranks: planned / equal layers, speed"
                goals.append(Goal(what, "at least", 1.3, faster))
        report.table(case.title, ["", *_COLUMNS], rows)
    return goals


def _turns(case: Case, ranks: int, repetitions: int) -> list[list[SampleSet]]:
    with signals_unwind():
        if not case.slow_link:
            return repeated(case, ranks, repetitions, None)
        with two_hosts(_MBIT) as hosts:
            return repeated(case, ranks, repetitions, hosts)


def _row(name: str, done: Sequence[SampleSet], errors: Figure | None) -> list[str | Figure]:
    middle = sorted(done, key=lambda each: each.measured)[len(done) // 2]
    return [
        name,
        Figure(tuple(each.predicted for each in done)) if errors else "",
        Figure(tuple(each.measured for each in done)),
        errors or "",
        str(middle.micro_batch),
        "/".join(map(str, middle.stages)),
        "/".join(f"{pace:.2f}" for pace in middle.paces),
    ]
