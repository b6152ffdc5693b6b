"""The accuracy of predictions: jobs that measure, plan and run.

Three models on two ranks and on three: one on undisturbed ranks, one with a rank that shares its
core with another process, one over a slow link between two hosts. Each repetition is a separate
job; the profile cache is filled by the first. With the shared core, the planned job takes turns
with the same job cut into equal numbers of layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.catalog.prediction.job import plan_and_run
from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.report import Figure, Row, ratio
from benchmarks.shared.run import Run
from tests.helpers.cluster.hosts import HostsError, two_hosts

_MBIT: Final = 200
_COLUMNS: Final = ("predicted/s", "measured/s", "error, %", "micro-batch", "operations", "paces")
_ERROR: Final = Goal("error, %", "at most", 10)
_EQUAL: Final = Goal("planned / equal layers, speed", "at least", 1.3)


@dataclass(frozen=True, slots=True)
class Case:
    """A model and its circumstances."""

    title: str
    """The model and the circumstances, for the report."""
    model: str
    """A factory of `models`."""
    samples: int
    """The number of samples."""
    shape: tuple[int, ...]
    """The shape of a sample."""
    tokens: bool = False
    """Whether samples are token ids, not floats."""
    busy: bool = False
    """Whether another process computes on the core of the last rank."""
    slow_link: bool = False
    """Whether rank 0 is on another host, with a slow link to the other ranks."""

    def write_input(self, path: Path) -> None:
        """Write random samples, the same ones each time."""
        draw, shape = np.random.default_rng(0), (self.samples, *self.shape)
        values: npt.NDArray[np.generic] = (
            draw.integers(0, 8000, shape) if self.tokens else draw.random(shape, dtype=np.float32)
        )
        np.save(path, values)


CASES: Final = (
    Case("Llama, undisturbed", "llama", 384, (128,), tokens=True),
    Case("encoder, the last rank's core is shared", "encoder", 192, (128, 384), busy=True),
    Case(f"ResNet-50, {_MBIT} Mbit/s to rank 0", "resnet", 128, (3, 224, 224), slow_link=True),
)


def measure(run: Run) -> None:
    """Run every case, and report predicted and measured samples/s."""
    report = run.report
    for case in CASES:
        rows: list[Row] = []
        for ranks in (2, 3):
            try:
                found = repeated(run, case, ranks)
            except HostsError as error:
                report.note(f"{case.title}: no two hosts here: {error}")
                continue
            planned = [turn["planned"] for turn in found]
            errors = Figure(tuple(100 * abs(d["predicted"] / d["measured"] - 1) for d in planned))
            rows.append(_row(f"{ranks} ranks, planned", planned, errors))
            report.goal(_ERROR, errors, f"{case.title}, {ranks} ranks")
            if case.busy:
                equal = [turn["equal"] for turn in found]
                faster = ratio([d["measured"] for d in planned], [d["measured"] for d in equal])
                rows.append(_row(f"{ranks} ranks, equal layers", equal, None))
                report.goal(_EQUAL, faster, f"{case.title}, {ranks} ranks")
        report.table(case.title, ["", *_COLUMNS], rows)


def repeated(run: Run, case: Case, ranks: int) -> list[dict[str, dict[str, Any]]]:
    """Run the planned job of a case several times, and the equal split if a core is shared.

    Raises:
        HostsError: there cannot be two hosts here.
    """
    with contextlib.ExitStack() as held:
        hosts = held.enter_context(two_hosts(_MBIT)) if case.slow_link else None
        folder = held.enter_context(TemporaryDirectory())
        case.write_input(Path(folder) / "in.npy")

        def job(equal: bool) -> Any:
            return run.job(
                "plan_and_run",
                ranks,
                where=hosts,
                env={"XDG_CACHE_HOME": f"{folder}/cache"},
                seconds=300,
                model=f"benchmarks.catalog.prediction.models:{case.model}",
                folder=folder,
                equal=equal,
                busy=ranks - 1 if case.busy else None,
            )

        sides = {"planned": False, "equal": True} if case.busy else {"planned": False}
        return [
            {side: job(equal) for side, equal in sides.items()}
            for _ in range(run.options.repetitions)
        ]


def _row(name: str, done: Sequence[dict[str, Any]], errors: Figure | None) -> Row:
    middle = sorted(done, key=lambda each: each["measured"])[len(done) // 2]
    return [
        name,
        Figure(tuple(each["predicted"] for each in done)) if errors else "",
        Figure(tuple(each["measured"] for each in done)),
        errors or "",
        str(middle["micro_batch"]),
        "/".join(map(str, middle["stages"])),
        "/".join(f"{pace:.2f}" for pace in middle["paces"]),
    ]


BENCHMARK: Final = Benchmark(
    question="does a prediction come true?",
    duration="11 minutes; as root, for the two hosts",
    measure=measure,
    jobs={"plan_and_run": plan_and_run},
    options=(Option("repetitions", 3, "repetitions of each job"),),
    goals=(_ERROR, _EQUAL),
)
