"""The record of a run: the values that the summary shows."""

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
    """The record of one stage."""

    rank: int
    """The rank that ran the stage."""
    host: str
    """The host of the rank."""
    threads: int
    """Number of threads that it computed with."""
    weight_bytes: int
    """Bytes of its weights."""
    peak_bytes: int
    """Peak memory of its process on its device, in bytes."""
    totals: dict[Kind, Totals]
    """The recorded time of each kind of work."""
    gaps: float
    """Seconds between its records; see `Tracer.gaps`."""
    seconds: float
    """Wall time of the run on its rank."""
    device: str = "cpu"
    """Its kind of device: cpu or cuda."""

    @property
    def device_text(self) -> str:
        """The device in words: GPU, or the number of threads."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return "GPU" if self.device == "cuda" else threads

    @property
    def work(self) -> float:
        """Seconds in which it computed, read the input or wrote results."""
        return sum(self.totals[kind].seconds for kind in _WORK)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> StageRecord:
        """Rebuild a record from its `dataclasses.asdict`, which may have been converted to JSON."""
        totals = {kind: Totals(**each) for kind, each in fields["totals"].items()}
        return cls(**fields | {"totals": totals})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The record of a whole run."""

    samples: int
    """Number of samples that this run has processed."""
    seconds: float
    """Wall time of the run, the longest of all ranks."""
    stages: tuple[StageRecord, ...]
    """The records of the stages, in the order of the pipeline; empty if the job was stopped before
    the first sample."""
    confusion: Confusion | None = None
    """The confusion matrix; None if the correct classes are unknown."""
    predicted: float | None = None
    """Predicted samples per second; None if the plan was not made from measured times."""
    failed: int = 0
    """Number of samples that failed when they were tried alone, also in earlier runs of the job."""
    stopped: Stopped | None = None
    """The progress of the job when it stopped on request; None if it was not stopped."""

    @property
    def bound(self) -> float:
        """Seconds of a perfect pipeline with the measured compute times; see `trace.bound`."""
        return bound([stage.totals["compute"] for stage in self.stages])

    @property
    def efficiency(self) -> float:
        """The speed as a share of the perfect pipeline's, at most about 1; 0 for 0 seconds."""
        return self.bound / self.seconds if self.seconds else 0.0

    @property
    def busiest(self) -> StageRecord:
        """The stage with the most seconds of work, the first of equals; there must be a stage."""
        return max(self.stages, key=lambda stage: stage.work)

    @property
    def idle(self) -> Idle:
        """The shares of idle time by cause; there must be a stage."""
        last = self.stages[-1]
        recorded = sum(totals.seconds for totals in last.totals.values())
        return idle_shares(
            [stage.totals for stage in self.stages],
            [stage.gaps for stage in self.stages],
            last.seconds - recorded - last.gaps,
            self.seconds,
        )

    def to_json(self) -> str:
        """Return the record as JSON, on one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Rebuild a record from the result of `to_json`."""
        fields = json.loads(text)
        stages = tuple(map(StageRecord.from_fields, fields["stages"]))
        counted, stopped = fields["confusion"], fields["stopped"]
        confusion = counted and Confusion.from_fields(counted)
        stop = stopped and Stopped(**stopped)
        return cls(**fields | {"stages": stages, "confusion": confusion, "stopped": stop})
