"""One job, as a user would do it: measure, plan, run; prints one line of JSON.

    mpirun -n 2 python -m benchmarks.job --model=M --input=F --output=F --plan=F

Ranks are kept on cores of their own; if there are more ranks than cores, the last ones share one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.architectures import LAYERS
from benchmarks.link import pin_to
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

# Ends by itself, should its rank be killed.
_BUSY: Final = "import time\nend = time.time() + 300\nwhile time.time() < end: pass"


@dataclass(frozen=True, slots=True)
class SampleSet:
    """What a job printed."""

    predicted: float
    """Samples a second, before the run."""
    measured: float
    """Samples a second of the run."""
    micro_batch: int
    """Samples that travelled together."""
    stages: list[int]
    """Operations of each stage."""
    paces: list[float]
    """How fast each rank was found to be; 1 as usual for its kind."""


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    """Something else that computes on this rank's core all the while."""
    neighbour = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def equal_layers(table: CutTable, ranks: int) -> list[int]:
    """Cuts of the encoder that give each rank as many layers."""
    bounds = [LAYERS * rank // ranks for rank in range(1, ranks)]
    layer_of = {cut.position: int(cut.module.split(".")[0]) for cut in table.cuts if cut.module}
    return [max(at for at, layer in layer_of.items() if layer < bound) for bound in bounds]


def write_equal_plan(planned: Planned, ranks: int, micro_batch: int, path: Path) -> None:
    """What a user without a planner would run."""
    module = planned_model(planned)
    (args, kwargs), _ = example_for(planned, module, PlanRequest())
    graph = capture(module, args, kwargs)
    table = cut_table(graph)
    path.write_text(plan_of(graph, table, equal_layers(table, ranks), micro_batch).to_json())


def work(world: World, options: argparse.Namespace) -> SampleSet | None:
    """Plan and run; what came out on rank 0, None elsewhere. *Collective.*"""
    planned = Planned(options.model, file=options.input)
    planning = plan_measured(world, planned, PlanRequest(), None, print, device="cpu")
    if planning is not None and planning.plan is not None:
        if options.equal:
            assert planning.plan.micro_batch is not None
            write_equal_plan(planned, world.size, planning.plan.micro_batch, options.plan)
        else:
            options.plan.write_text(planning.plan.to_json())
    world.all_gather("")  # the plan is there
    summary = run_job(
        world, Job(options.model, options.input, options.output, plan=options.plan, device="cpu")
    )
    if planning is None or planning.choice is None:
        return None
    prediction = planning.choice.prediction
    plan = Plan.from_json(options.plan.read_text())
    return SampleSet(
        prediction.samples_per_second,
        summary.samples / summary.seconds,
        plan.micro_batch or 0,
        [stage.end - stage.begin for stage in plan.stages],
        [stage.device.speed for stage in prediction.stages],
    )


def main() -> None:
    """Be one rank."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("input", "output", "plan"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--model", required=True, help="package.module:factory")
    parser.add_argument("--equal", action="store_true", help="as many layers for each rank")
    parser.add_argument("--busy", type=int, help="the rank with a busy neighbour on its core")
    options = parser.parse_args()
    world = World.start()
    cores = sorted(os.sched_getaffinity(0))
    pin_to(cores[min(world.rank, len(cores) - 1)])
    beside = busy_neighbour() if options.busy == world.rank else contextlib.nullcontext()
    with FailTogether(world), beside:
        done = work(world, options)
        if done is not None:
            print(json.dumps(asdict(done)), flush=True)
    world.close()


if __name__ == "__main__":
    main()
