"""What a run has to say at its end: how fast, how close to the bound, who was busy."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from dataclasses import dataclass
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from pipepar.comm.world import World
from pipepar.format import bar, readable_bytes
from pipepar.host.device_context import DeviceContext
from pipepar.report.confusion import Confusion
from pipepar.report.idle import Idle, idle_shares
from pipepar.report.quality import print_confusion
from pipepar.supervision.stopping import Stopped
from pipepar.trace import Kind, Totals, Tracer, bound

_BAR: Final = 20
_WORK: Final[tuple[Kind, ...]] = ("source", "compute", "sink")
_MUCH: Final = 0.1
"""Share of idle time from which on a remedy is told."""
_REMEDIES: Final = {
    "fill": "let more micro-batches flow: make them smaller, or give more input at once",
    "imbalance": "try another number of ranks, or measure again: mpirun pipepar plan --profile",
    "transfer": "try larger micro-batches, more depth, or cuts where less crosses: pipepar plan "
    "--show-cuts",
    "source": "prepare the input beforehand, as arrays, or give rank 0 more threads",
    "sink": "write tensors rather than answers, or do less in --postprocess",
}


@dataclass(frozen=True, slots=True)
class StageSummary:
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


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A whole run, the same on every rank."""

    samples: int
    """Rows of the user's input that this run did."""
    seconds: float
    """From the first micro-batch's start to the last result."""
    stages: tuple[StageSummary, ...]
    """In the order of the pipeline."""
    confusion: Confusion | None = None
    """Which class was taken for which; None where the right ones are not known."""
    predicted: float | None = None
    """Samples a second that the plan was to reach; None where it was not made of measured times."""
    failed: int = 0
    """Samples that the output has no results of."""
    stopped: Stopped | None = None
    """How far the job came, if it was told to stop."""

    @property
    def bound(self) -> float:
        """Seconds a perfect pipeline would have taken, given the measured compute times."""
        return bound([stage.totals["compute"] for stage in self.stages])

    @property
    def efficiency(self) -> float:
        """Achieved / bound as a share of the perfect pipeline's speed, at most about 1."""
        return self.bound / self.seconds if self.seconds else 0.0

    @property
    def busiest(self) -> StageSummary:
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


def peak_bytes(device: torch.device) -> int:
    """The most memory of a device that this process has had so far, in bytes. *Local.*"""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def summarise(
    world: World,
    tracer: Tracer,
    weight_bytes: int,
    threads: int,
    samples: int,
    seconds: float,
    confusion: Confusion | None = None,
    predicted: float | None = None,
    failed: int = 0,
    *,
    context: DeviceContext,
) -> RunSummary:
    """Put every stage's figures together. *Collective.*

    Args:
        world: all ranks.
        tracer: this stage's times.
        weight_bytes: this stage's weights.
        threads: what it computed with.
        samples: rows done; rank 0's number counts.
        seconds: wall time of the run; the longest counts.
        confusion: what the last rank counted, None elsewhere.
        predicted: samples a second; rank 0's number counts.
        failed: samples without results; the last rank's number counts.
        context: where this rank computed.
    """
    tracer.finish()
    mine = StageSummary(
        rank=world.rank,
        host=world.host,
        threads=threads,
        weight_bytes=weight_bytes,
        peak_bytes=peak_bytes(context.device),
        device=context.devices.by_rank[world.rank],
        totals=tracer.totals,
        gaps=tracer.gaps,
        seconds=seconds,
    )
    counted = confusion and dataclasses.asdict(confusion)
    fields = [samples, dataclasses.asdict(mine), counted, predicted, failed]
    texts = world.all_gather(json.dumps(fields))
    parts = [json.loads(text) for text in texts]
    stages = []
    for _, stage, *_ in parts:
        totals = {kind: Totals(**each) for kind, each in stage.pop("totals").items()}
        stages.append(StageSummary(**stage, totals=totals))
    longest = max(stage.seconds for stage in stages)
    told, _, _, planned, _ = parts[0]
    _, _, counted, _, failed = parts[-1]
    return RunSummary(told, longest, tuple(stages), _confusion(counted), planned, failed)


def _confusion(fields: dict[str, Any] | None) -> Confusion | None:
    if fields is None:
        return None
    return Confusion(tuple(fields["names"]), tuple((a, b, n) for a, b, n in fields["cells"]))


def print_summary(summary: RunSummary, console: Console) -> None:
    """Show a run to a person. *Local.*"""
    speed = summary.samples / summary.seconds if summary.seconds else 0.0
    known = summary.samples and summary.predicted is not None
    predicted = f" (predicted {summary.predicted:,.1f})" if known else ""
    console.print(
        f"[bold]{summary.samples:,} samples in {summary.seconds:.1f} s, {speed:,.1f} samples/s[/]"
        f"{predicted} · {summary.efficiency:.0%} of the perfect pipeline's speed (bound "
        f"{summary.bound:.1f} s)"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "host", "computes on", "weights", "peak memory", "busy", ""):
        left = column in ("host", "computes on", "")
        table.add_column(column, justify="left" if left else "right")
    for index, stage in enumerate(summary.stages):
        share = stage.totals["compute"].seconds / summary.seconds if summary.seconds else 0.0
        table.add_row(
            str(index),
            stage.host,
            stage.place,
            readable_bytes(stage.weight_bytes),
            readable_bytes(stage.peak_bytes),
            f"{share:.0%}",
            bar(share, _BAR),
        )
    console.print(table)
    if summary.samples:
        _print_idle(summary, console)
    if summary.confusion is not None:
        print_confusion(summary.confusion, console)


def _print_idle(summary: RunSummary, console: Console) -> None:
    busiest = summary.busiest
    console.print(
        f"busiest: stage {busiest.rank} on {busiest.host}, at work "
        f"{busiest.work / summary.seconds:.0%} of the time"
    )
    shares = dataclasses.asdict(summary.idle)
    console.print("idle: " + " · ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    largest = max(shares, key=lambda name: shares[name])
    if shares[largest] > _MUCH and largest in _REMEDIES:
        console.print(f"{largest} is large: {_REMEDIES[largest]}")
