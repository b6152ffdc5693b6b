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
    """Return the record of this rank at the end of a run; waits for its device.

    Args:
        run: the world, the device and the tracer of this rank; the tracer is finished.
        weight_bytes: bytes of the weights of its stage.
        seconds: wall time of the run on this rank.
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
    """The facts of one rank about the whole run; the record takes each from one rank."""

    samples: int
    """Number of processed samples; from the source."""
    confusion: Confusion | None = None
    """The confusion matrix; from the sink."""
    predicted: float | None = None
    """Predicted samples per second; from the root."""
    failed: int = 0
    """Number of samples without results; from the sink."""


def gather_record(
    world: World, placement: Placement, stage: StageRecord, findings: Findings
) -> RunRecord:
    """Return the record of the whole run, the same on every rank. *Collective.*

    Args:
        world: all ranks.
        placement: the ranks of the stages, the source and the sink.
        stage: the record of this rank.
        findings: the facts of this rank about the whole run.
    """
    own = json.dumps([asdict(stage), asdict(findings)])
    texts = world.gather(own, world.root)
    record = None if texts is None else _joined(texts, placement, world.root)
    return RunRecord.from_json(world.broadcast(record.to_json() if record else ""))


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process on a device, in bytes.

    On a GPU, this is the memory reserved by torch's allocator; on a CPU, the resident set size.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _joined(texts: list[str], placement: Placement, root: int) -> RunRecord:
    """Return the record of the run from the texts of all ranks.

    The first stage gets the times of reading, the last stage those of writing, even if another rank
    reads or writes. The wall time is the longest of all ranks.
    """
    records = [StageRecord.from_fields(json.loads(text)[0]) for text in texts]
    findings = [json.loads(text)[1] for text in texts]
    source, sink = placement.ends.source, placement.ends.sink
    counted = findings[sink]["confusion"]
    return RunRecord(
        samples=findings[source]["samples"],
        seconds=max(record.seconds for record in records),
        stages=tuple(
            replace(
                records[rank],
                totals={
                    **records[rank].totals,
                    "source": _at_end(records[source], "source", stage == 0),
                    "sink": _at_end(records[sink], "sink", rank == placement.ranks[-1]),
                },
            )
            for stage, rank in enumerate(placement.ranks)
        ),
        confusion=counted and Confusion.from_fields(counted),
        predicted=findings[root]["predicted"],
        failed=findings[sink]["failed"],
    )


def _at_end(record: StageRecord, kind: Kind, is_end: bool) -> Totals:
    """Return the times of reading or writing if the stage is at that end, else empty times.

    The record may be of a rank that does not run the stage.
    """
    return record.totals[kind] if is_end else Totals()
