"""The record of a run, put together of what each rank knows."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from typing import Final

import torch

from pipepar.comm.world import World
from pipepar.host.run_context import RunContext
from pipepar.report.confusion import Confusion
from pipepar.report.run_record import RunRecord, StageRecord

REPORTING: Final = 0
"""The rank that reports."""


def stage_record(run: RunContext, weight_bytes: int, seconds: float) -> StageRecord:
    """This rank's share of a run that is over; waits for its device. *Local.*

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


def gather_record(
    world: World,
    stage: StageRecord,
    samples: int,
    confusion: Confusion | None = None,
    predicted: float | None = None,
    failed: int = 0,
) -> RunRecord:
    """The record of a whole run. *Collective.*

    Args:
        world: all ranks.
        stage: this rank's share; the run took as long as the longest of them.
        samples: rows done; rank 0's number counts.
        confusion: what the last rank counted, None elsewhere.
        predicted: samples a second; rank 0's number counts.
        failed: samples without results; the last rank's number counts.

    Returns:
        The same on every rank.
    """
    own = [samples, asdict(stage), confusion and asdict(confusion), predicted, failed]
    texts = world.gather(json.dumps(own), REPORTING)
    record = None if texts is None else _joined(texts)
    return RunRecord.from_json(world.broadcast(record.to_json() if record else ""))


def peak_bytes(device: torch.device) -> int:
    """The most memory of a device that this process has had so far, in bytes. *Local.*"""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _joined(texts: list[str]) -> RunRecord:
    """What each rank told, in order."""
    parts = [json.loads(text) for text in texts]
    samples, _, _, predicted, _ = parts[0]
    _, _, counted, _, failed = parts[-1]
    stages = tuple(StageRecord.from_fields(stage) for _, stage, *_ in parts)
    longest = max(stage.seconds for stage in stages)
    confusion = counted and Confusion.from_fields(counted)
    return RunRecord(samples, longest, stages, confusion, predicted, failed)
