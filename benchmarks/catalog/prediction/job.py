"""One job as a user would run it: measure, plan, run.

Each rank is pinned to its own core; with more ranks than cores the last ranks share one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.catalog.prediction.models import LAYERS
from benchmarks.shared.pinning import pin_to
from pipepar.comm.world import World
from pipepar.jobs.plan_on_ranks import plan_measured
from pipepar.jobs.planned_job import Planned, example_for, planned_model
from pipepar.jobs.run import Job, run_job
from pipepar.model.capture.capture import capture
from pipepar.model.split.crossing import CutTable, cut_table
from pipepar.plan.plan import Plan
from pipepar.planner.plan_from_cuts import plan_of
from pipepar.planner.plan_request import PlanRequest
from pipepar.supervision.failure import FailTogether

# The process ends after 300 s even if its rank is killed.
_LOAD: Final = "import time\nend = time.time() + 300\nwhile time.time() < end: pass"


def plan_and_run(options: Namespace) -> dict[str, Any] | None:
    """Run a job. *Collective.*

    Args:
        options: `model`, `folder` with the input "in.npy", `equal` for equal layers on each rank
            instead of the plan, and `busy`, the rank that shares its core, or None.

    Returns:
        The predicted and the measured samples/s, the micro-batch, the operations of each stage and
        the pace of each rank; None except on rank 0.
    """
    world = World.start()
    cores = sorted(os.sched_getaffinity(0))
    pin_to(cores[min(world.rank, len(cores) - 1)])
    load = other_load() if options.busy == world.rank else contextlib.nullcontext()
    with FailTogether(world), load:
        found = _plan_and_run(world, options)
    world.close()
    return found


@contextlib.contextmanager
def other_load() -> Iterator[None]:
    """Run another computing process on the core of this rank."""
    process = subprocess.Popen([sys.executable, "-c", _LOAD])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def equal_layers(table: CutTable, ranks: int) -> list[int]:
    """Return cuts of the encoder that give each rank the same number of layers."""
    bounds = [LAYERS * rank // ranks for rank in range(1, ranks)]
    layer_of = {cut.position: int(cut.module.split(".")[0]) for cut in table.cuts if cut.module}
    return [max(at for at, layer in layer_of.items() if layer < bound) for bound in bounds]


def equal_plan(planned: Planned, ranks: int, micro_batch: int) -> Plan:
    """Return the plan with the same number of layers on each rank."""
    module = planned_model(planned)
    (args, kwargs), _ = example_for(planned, module, PlanRequest())
    graph = capture(module, args, kwargs)
    table = cut_table(graph)
    return plan_of(graph, table, equal_layers(table, ranks), micro_batch)


def _plan_and_run(world: World, options: Namespace) -> dict[str, Any] | None:
    folder = Path(options.folder)
    planned = Planned(options.model, file=folder / "in.npy")
    planning = plan_measured(world, planned, PlanRequest(), None, print, device="cpu")
    file = folder / "plan.json"
    if planning is not None and (plan := planning.plan) is not None:
        if options.equal:
            assert plan.micro_batch is not None
            plan = equal_plan(planned, world.size, plan.micro_batch)
        file.write_text(plan.to_json())
    world.all_gather("")  # wait for the file
    job = Job(options.model, folder / "in.npy", folder / "out.npy", plan=file, device="cpu")
    summary = run_job(world, job)
    if planning is None or planning.choice is None:
        return None
    prediction = planning.choice.prediction
    plan = Plan.from_json(file.read_text())
    return {
        "predicted": prediction.samples_per_second,
        "measured": summary.samples / summary.seconds,
        "micro_batch": plan.micro_batch or 0,
        "stages": [stage.end - stage.begin for stage in plan.stages],
        "paces": [stage.device.speed for stage in prediction.stages],
    }
