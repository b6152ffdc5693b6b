"""The record of a run, gathered from all ranks."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass, replace

import torch

from pipepar.comm.world import World
from pipepar.host.run_context import RunContext
from pipepar.plan.placement import Placement
from pipepar.report.confusion import Confusion
from pipepar.report.run_record import RunRecord, StageRecord
from pipepar.trace import Kind, Totals


def stage_record(run: RunContext, weight_bytes: int, seconds: float) -> StageRecord:
    """This rank's share of a run that is over; waits for its device.

    Args:
        run: this rank's.
        weight_bytes: of its stage.
        seconds: wall time of its run.
    """
    world, context = run.world, run.device_context
    run.tracer.finish()
    return StageRecord(
        rank=world.rank,
        host=world.host,
        threads=run.threads,
        weight_bytes=weight_bytes,
        peak_bytes=peak_bytes(context.device),
        totals=run.tracer.totals,
        gaps=run.tracer.gaps,
        seconds=seconds,
        device=context.devices.by_rank[world.rank],
    )


@dataclass(frozen=True, slots=True)
class Findings:
    """What one rank knows of the whole run, besides its own share."""

    samples: int
    """Rows done; the source's number counts."""
    confusion: Confusion | None = None
    """What the sink counted."""
    predicted: float | None = None
    """Samples a second; the number of the rank that reports counts."""
    failed: int = 0
    """Samples without results; the sink's number counts."""


def gather_record(
    world: World, placement: Placement, stage: StageRecord, findings: Findings
) -> RunRecord:
    """The record of a whole run, the same on every rank. *Collective.*

    Args:
        world: all ranks.
        placement: which rank ran which stage.
        stage: this rank's share; the run took as long as the longest of them.
        findings: what this rank knows of the whole run.
    """
    own = json.dumps([asdict(stage), asdict(findings)])
    texts = world.gather(own, world.root)
    record = None if texts is None else _joined(texts, placement, world.root)
    return RunRecord.from_json(world.broadcast(record.to_json() if record else ""))


def peak_bytes(device: torch.device) -> int:
    """The most memory of a device that this process has had so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _joined(texts: list[str], placement: Placement, root: int) -> RunRecord:
    """One record of the shares by rank; a rank without a stage counts as source or sink only."""
    shares = [StageRecord.from_fields(json.loads(text)[0]) for text in texts]
    findings = [json.loads(text)[1] for text in texts]
    source, sink = placement.ends.source, placement.ends.sink
    counted = findings[sink]["confusion"]
    return RunRecord(
        samples=findings[source]["samples"],
        seconds=max(share.seconds for share in shares),
        stages=tuple(
            replace(
                shares[rank],
                totals={
                    **shares[rank].totals,
                    "source": _at_end(shares[source], "source", at == 0),
                    "sink": _at_end(shares[sink], "sink", rank == placement.ranks[-1]),
                },
            )
            for at, rank in enumerate(placement.ranks)
        ),
        confusion=counted and Confusion.from_fields(counted),
        predicted=findings[root]["predicted"],
        failed=findings[sink]["failed"],
    )


def _at_end(share: StageRecord, kind: Kind, own: bool) -> Totals:
    """Reading counts for the first stage and writing for the last, whichever rank does it."""
    return share.totals[kind] if own else Totals()
