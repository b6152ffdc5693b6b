"""`pipepar plan`: which stage would get what, and what a run would reach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipepar.cli.arguments import Device, DeviceKind, Dtype, Model, Preprocess

if TYPE_CHECKING:
    from pipepar.comm.world import World
    from pipepar.jobs.planned_job import Planned
    from pipepar.planner.plan_offline import Planning
    from pipepar.planner.plan_request import PlanRequest


def plan(  # noqa: PLR0913 - the options of a command
    model: Model,
    stages: Annotated[
        int | None,
        typer.Option(
            help="Into how many stages to cut it, one for each rank; with --cluster one for each "
            "device, if not given.",
            min=1,
        ),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Plan for these devices, rank 0's first, and predict times. Under each "
            r"\[\[device]] kind, count, memory = '40 GiB', speed = '20 TFLOPS'; under \[\[link]] "
            "latency = '10 us', bandwidth = '25 GB/s', and between = ['KIND', 'KIND'] where not "
            "all links are alike.",
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Measure the model here, and plan by that: in one process, as if --stages devices "
            "were like this one. Ranks are measured anyhow; times that earlier jobs have kept, in "
            "~/.cache/pipepar, are then measured again.",
        ),
    ] = False,
    free_order: Annotated[
        bool,
        typer.Option("--free-order", help="With --cluster, let any device take any stage."),
    ] = False,
    fewer: Annotated[
        bool,
        typer.Option("--fewer", help="With --cluster, leave devices out that are of no use."),
    ] = False,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples that travel together, to predict times for.",
            show_default="what was measured to be best; with --cluster 32, or what fits",
            min=1,
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Micro-batches that may wait on each end of a channel, to predict times for.",
            show_default="2, or 1 where memory is short",
            min=1,
            max=1000,
        ),
    ] = None,
    show_cuts: Annotated[
        bool,
        typer.Option(
            "--show-cuts", help="Show every place where it can be cut, and what would cross there."
        ),
    ] = False,
    example: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="The input of the job to plan for: its first samples are the example, and times "
            "are predicted for as many as it has. A folder needs none where its model, for this "
            "--task, takes text or pictures: its configuration says their size.",
        ),
    ] = None,
    preprocess: Preprocess = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]2x512[:DTYPE]",
            help="An argument of the model instead of an input, float32 without a dtype; once "
            "for each.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the plan here, for 'pipepar run --plan'."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the predicted timeline, for Perfetto or chrome://tracing."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="What a Hugging Face model is to do.", show_default="feature-extraction"),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Cut a model into stages and show them; no weights are read, of a folder only config.json.

    Under mpirun it measures ranks and links, as a run without --plan does, and predicts times.

    In one process it counts operations, also for a model or devices that this machine cannot hold.

    [bold]Measure ranks and links, then run as planned[/bold]

        mpirun -n 4 pipepar plan ./all-MiniLM-L6-v2 --input passages.txt -o plan.json

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt out.npy --plan plan.json

    [bold]See where one's own model can be cut[/bold]

        pipepar plan mypackage.models:make --shape 2x3x224x224 --show-cuts | less

    [bold]Balance a model over devices that differ, before one has them[/bold]

        pipepar plan ./vit --cluster cluster.toml --micro-batch 64 --trace predicted.json
    """
    from pipepar.comm.world import World
    from pipepar.errors import PipeparError
    from pipepar.host.threads import crowded
    from pipepar.jobs.planned_job import Planned
    from pipepar.planner.plan_request import PlanRequest
    from pipepar.supervision.failure import FailTogether

    planned = Planned(model, task, example, preprocess, shape or (), dtype)
    request = PlanRequest(None, micro_batch, depth, free_order, fewer, fresh=profile)
    asked = _Asked(stages, cluster, profile, request, show_cuts, output, trace, device)
    try:
        world = World.start()
        with FailTogether(world):
            warning = crowded(world)
            if warning and world.rank == min(world.cores):
                _note(warning)
            _check(planned, asked, world)
            planning = _planning(planned, asked, world)
            if planning is not None:
                _write(planning, asked)
                _print(planning, asked)
        world.close()
    except (PipeparError, ImportError, RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options, as they were given."""

    stages: int | None
    cluster: Path | None
    profile: bool
    request: PlanRequest
    show_cuts: bool
    output: Path | None
    trace: Path | None
    device: DeviceKind


def _check(planned: Planned, asked: _Asked, world: World) -> None:
    """Refuse what can be refused before the model is captured, which may take minutes."""
    from pipepar.errors import InputError
    from pipepar.jobs.planned_job import check_planned

    no_plan = asked.stages is None and asked.cluster is None and world.size == 1
    if no_plan and (asked.output is not None or asked.profile or not asked.show_cuts):
        raise InputError(
            "found no --stages, expected how many; give --stages N or --cluster FILE.toml for a "
            "plan, or --show-cuts without -o to see where the model can be cut"
        )
    if asked.cluster is not None and asked.profile:
        raise InputError(
            f"found --profile and --cluster {asked.cluster}, expected one of them: what runs here "
            "can be measured, what is only described cannot; leave one out"
        )
    if asked.cluster is not None and asked.device != "auto":
        raise InputError(
            f"found --device {asked.device} and --cluster {asked.cluster}, expected one of them: "
            "the file says which devices to plan for; leave --device out"
        )
    if asked.cluster is None:
        _check_useful(asked, measured=asked.profile or world.size > 1)
    check_planned(planned)
    if world.is_root:
        _check_written(planned, asked)


def _check_useful(asked: _Asked, measured: bool) -> None:
    """Refuse options that say something of devices where there are none."""
    from pipepar.errors import InputError

    request = asked.request
    described = {"--free-order": request.free_order, "--fewer": request.fewer}
    known = {
        "--micro-batch": request.micro_batch,
        "--depth": request.depth,
        "--trace": asked.trace,
        "--device": asked.device.replace("auto", ""),
    }
    for option, value in (described if measured else described | known).items():
        if value:
            found = option if value is True else f"{option} {value}"
            raise InputError(
                f"found {found} without --cluster, expected devices to predict times for; give "
                f"--cluster FILE.toml{'' if option in described else ' or --profile'} too, or "
                f"leave {option} out"
            )


def _check_written(planned: Planned, asked: _Asked) -> None:
    from pipepar.files import require_apart, require_writable
    from pipepar.model.source.import_path import source_file
    from pipepar.model.source.open_source import is_factory

    model = source_file(planned.model) if is_factory(planned.model) else Path(planned.model)
    written = {"--output": asked.output, "--trace": asked.trace}
    read = {"MODEL": model, "--input": planned.file, "--cluster": asked.cluster}
    outputs = {option: path for option, path in written.items() if path is not None}
    for option, path in outputs.items():
        require_writable(option, path)
    require_apart(outputs, {name: path for name, path in read.items() if path is not None})


def _planning(planned: Planned, asked: _Asked, world: World) -> Planning | None:
    """The plan on rank 0, None elsewhere."""
    from pipepar.jobs.plan_on_ranks import plan_measured
    from pipepar.jobs.planned_job import example_for, planned_model
    from pipepar.plan.cluster import read_cluster
    from pipepar.planner.plan_offline import plan_model

    if asked.profile or (world.size > 1 and asked.cluster is None):
        return plan_measured(world, planned, asked.request, asked.stages, _note, asked.device)
    if not world.is_root:
        return None
    cluster = None if asked.cluster is None else read_cluster(asked.cluster)
    module = planned_model(planned)
    (args, kwargs), samples = example_for(planned, module, asked.request)
    request = replace(asked.request, samples=samples)
    return plan_model(module, args, kwargs, asked.stages, cluster, request)


def _note(sentence: str) -> None:
    typer.echo(f"note: {sentence}", err=True)


def _write(planning: Planning, asked: _Asked) -> None:
    from pipepar.files import write_whole
    from pipepar.trace import write_chrome_trace

    if planning.plan is not None and asked.output is not None:
        write_whole(asked.output, planning.plan.to_json())
    if planning.choice is not None and asked.trace is not None:
        write_chrome_trace(asked.trace, planning.choice.prediction.timeline.spans)


def _print(planning: Planning, asked: _Asked) -> None:
    from pipepar.cli.show_cuts import print_cuts
    from pipepar.cli.show_plan import print_prediction, print_shares
    from pipepar.cli.terminal import UNBOUNDED, open_console

    console = open_console(stdout=True, width=UNBOUNDED)
    if asked.show_cuts:
        print_cuts(planning.table, planning.plan, console)
    if planning.plan is None:
        return
    if planning.choice is None:
        print_shares(planning.plan, console)
    else:
        print_prediction(planning.choice, console, measured=asked.cluster is None)
    if planning.advice is not None:
        console.print(f"[yellow]note:[/] {planning.advice}")
    for path in (asked.output, asked.trace):
        if path is not None:
            console.print(f"wrote {path}", markup=False, soft_wrap=True)
