"""What a run found out about itself, as a plain value: how fast, how close to the bound, how busy.

The summary and --json are made from the record of a run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from pipepar.report.confusion import Confusion
from pipepar.report.idle import Idle, idle_shares
from pipepar.supervision.stopping import Stopped
from pipepar.trace import Kind, Totals, bound

_WORK: Final[tuple[Kind, ...]] = ("source", "compute", "sink")


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage's share of a run."""

    rank: int
    """Rank that owned the stage."""
    host: str
    """Its machine."""
    threads: int
    """Threads it computed with."""
    weight_bytes: int
    """Size of its weights."""
    peak_bytes: int
    """The most memory of its device that its process has had so far."""
    totals: dict[Kind, Totals]
    """What it did, in seconds of each kind."""
    gaps: float
    """Seconds in between; see `Tracer.gaps`."""
    seconds: float
    """Wall time of its own run."""
    device: str = "cpu"
    """What it computed on: cpu or cuda."""

    @property
    def place(self) -> str:
        """What it computed on, in words."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return "GPU" if self.device == "cuda" else threads

    @property
    def work(self) -> float:
        """Seconds that it computed, read the input or wrote results."""
        return sum(self.totals[kind].seconds for kind in _WORK)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> StageRecord:
        """The record whose fields `dataclasses.asdict` returned."""
        totals = {kind: Totals(**each) for kind, each in fields["totals"].items()}
        return cls(**fields | {"totals": totals})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A whole run."""

    samples: int
    """Rows of the user's input that this run did."""
    seconds: float
    """From the first micro-batch's start to the last result."""
    stages: tuple[StageRecord, ...]
    """In the order of the pipeline."""
    confusion: Confusion | None = None
    """Which class was taken for which; None where the right ones are not known."""
    predicted: float | None = None
    """Samples a second that the plan was to reach; None where it was not made of measured times."""
    failed: int = 0
    """Samples that the output has no results of."""
    stopped: Stopped | None = None
    """How far the job came, if it was asked to stop."""

    @property
    def bound(self) -> float:
        """Seconds a perfect pipeline would have taken, given the measured compute times."""
        return bound([stage.totals["compute"] for stage in self.stages])

    @property
    def efficiency(self) -> float:
        """Achieved / bound as a share of the perfect pipeline's speed, at most about 1."""
        return self.bound / self.seconds if self.seconds else 0.0

    @property
    def busiest(self) -> StageRecord:
        """The stage that worked most; where several did, the first."""
        return max(self.stages, key=lambda stage: stage.work)

    @property
    def idle(self) -> Idle:
        """Where the time went in which ranks did not compute."""
        last = self.stages[-1]
        recorded = sum(totals.seconds for totals in last.totals.values())
        return idle_shares(
            [stage.totals for stage in self.stages],
            [stage.gaps for stage in self.stages],
            last.seconds - recorded - last.gaps,
            self.seconds,
        )

    def to_json(self) -> str:
        """The record as JSON, on one line; `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """The record that `to_json` wrote."""
        fields = json.loads(text)
        stages = tuple(map(StageRecord.from_fields, fields["stages"]))
        counted, stopped = fields["confusion"], fields["stopped"]
        confusion = counted and Confusion.from_fields(counted)
        stop = stopped and Stopped(**stopped)
        return cls(**fields | {"stages": stages, "confusion": confusion, "stopped": stop})
