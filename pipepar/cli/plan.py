"""`pipepar plan`: the stages of a model and the predicted times of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipepar.cli.arguments import Device, DeviceKind, Dtype, Model, Preprocess

if TYPE_CHECKING:
    from pipepar.comm.world import World
    from pipepar.jobs.planned_job import Planned
    from pipepar.planner.plan_offline import OfflinePlan
    from pipepar.planner.plan_request import PlanRequest


def plan(  # noqa: PLR0913 - the options of a command
    model: Model,
    stages: Annotated[
        int | None,
        typer.Option(
            help="Number of stages.",
            show_default="one per rank under mpirun; one per device with --cluster",
            min=1,
        ),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Plan for the devices in this file, in the order of the ranks, and predict times. "
            r"\[\[device]] has kind, count, memory = '40 GiB', speed = '20 TFLOPS'. \[\[link]] has "
            "latency = '10 us', bandwidth = '25 GB/s', and between = ['KIND', 'KIND'] if links "
            "differ.",
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Measure the model again instead of using the times stored in ~/.cache/pipepar. "
            "In one process: measure instead of counting operations, and plan for --stages devices "
            "like this one.",
        ),
    ] = False,
    free_order: Annotated[
        bool,
        typer.Option("--free-order", help="With --cluster: assign stages to devices in any order."),
    ] = False,
    fewer: Annotated[
        bool,
        typer.Option("--fewer", help="With --cluster: leave out devices that give no speedup."),
    ] = False,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples per micro-batch, the unit that is sent from stage to stage.",
            show_default="by measurement; with --cluster 32, or fewer if memory is short",
            min=1,
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Micro-batches that each end of a channel between two stages can buffer.",
            show_default="2, or 1 if memory is short",
            min=1,
            max=1000,
        ),
    ] = None,
    show_cuts: Annotated[
        bool,
        typer.Option(
            "--show-cuts", help="List all possible cuts, with the bytes that would cross there."
        ),
    ] = False,
    example: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="Input of the job: its first samples are the example for tracing, and times are "
            "predicted for its number of samples. Optional for a Hugging Face folder whose --task "
            "takes text or pictures: its configuration has their size.",
        ),
    ] = None,
    preprocess: Preprocess = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]2x512[:DTYPE]",
            help="Shape of an argument of the model, instead of --input; repeat it for each "
            "argument. The default dtype is float32.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the plan here, for 'pipepar run --plan'."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the predicted timeline here, for Perfetto or chrome://tracing."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Task of a Hugging Face folder, see 'pipepar run --help'.",
            show_default="feature-extraction",
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Split a model into stages and predict times, without reading its weights.

    With several ranks and no --cluster, their speed, memory and links are measured, as at the
    start of a run.

    In one process, or with --cluster, operations are counted, also for a model that this machine
    cannot hold. A Hugging Face folder then needs only its config.json.

    [bold]Measure four ranks, then run with the plan[/bold]

        mpirun -n 4 pipepar plan ./all-MiniLM-L6-v2 --input passages.txt -o plan.json

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt out.npy --plan plan.json

    [bold]Split a large model into eight stages, by counted operations[/bold]

        pipepar plan ./llama --stages 8

    [bold]List the possible cuts of your own model[/bold]

        pipepar plan mypackage.models:make --shape 2x3x224x224 --show-cuts | less

    [bold]Predict times for the devices of a cluster, described in a file[/bold]

        pipepar plan ./vit --cluster cluster.toml --micro-batch 64 --trace predicted.json
    """
    from pipepar.comm.world import World
    from pipepar.errors import PipeparError
    from pipepar.host.threads import shared_cores_warning
    from pipepar.jobs.planned_job import Planned
    from pipepar.planner.plan_request import PlanRequest
    from pipepar.supervision.failure import FailTogether

    planned = Planned(model, task, example, preprocess, shape or (), dtype)
    request = PlanRequest(None, micro_batch, depth, free_order, fewer, fresh=profile)
    options = _Options(stages, cluster, profile, request, show_cuts, output, trace, device)
    try:
        world = World.start()
        with FailTogether(world):
            warning = shared_cores_warning(world)
            if warning and world.rank == min(world.cores):
                _note(warning)
            _check(planned, options, world)
            planning = _planning(planned, options, world)
            if planning is not None:
                _write(planning, options)
                _print(planning, options)
        world.close()
    except (PipeparError, ImportError, RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@dataclass(frozen=True, slots=True)
class _Options:
    """The options that do not describe the model or its input."""

    stages: int | None
    cluster: Path | None
    profile: bool
    request: PlanRequest
    show_cuts: bool
    output: Path | None
    trace: Path | None
    device: DeviceKind


def _check(planned: Planned, options: _Options, world: World) -> None:
    """Check all options first, since the capture of the model may take minutes."""
    from pipepar.errors import InputError
    from pipepar.jobs.planned_job import check_planned_job

    no_plan = options.stages is None and options.cluster is None and world.size == 1
    if no_plan and (options.output is not None or options.profile or not options.show_cuts):
        raise InputError(
            "found no --stages, expected a number; give --stages N or --cluster FILE.toml to make "
            "a plan, or --show-cuts without -o to list the possible cuts"
        )
    if options.cluster is not None and options.profile:
        raise InputError(
            f"found --profile and --cluster {options.cluster}, expected one of them: devices that "
            "are only described in a file cannot be measured; leave one out"
        )
    if options.cluster is not None and options.device != "auto":
        raise InputError(
            f"found --device {options.device} and --cluster {options.cluster}, expected one of "
            "them: the file describes the devices to plan for; leave --device out"
        )
    if options.cluster is None:
        _check_useful(options, measured=options.profile or world.size > 1)
    check_planned_job(planned)
    if world.is_root:
        _check_written(planned, options)


def _check_useful(options: _Options, measured: bool) -> None:
    """Refuse options of a cluster, which is not given, and of devices unless `measured`."""
    from pipepar.errors import InputError

    request = options.request
    of_cluster = {"--free-order": request.free_order, "--fewer": request.fewer}
    of_devices = {
        "--micro-batch": request.micro_batch,
        "--depth": request.depth,
        "--trace": options.trace,
        "--device": options.device.replace("auto", ""),
    }
    for option, value in (of_cluster if measured else of_cluster | of_devices).items():
        if value:
            found = option if value is True else f"{option} {value}"
            raise InputError(
                f"found {found} without --cluster, expected devices to predict times for; give "
                f"--cluster FILE.toml{'' if option in of_cluster else ' or --profile'} too, or "
                f"leave {option} out"
            )


def _check_written(planned: Planned, options: _Options) -> None:
    from pipepar.files import require_distinct, require_writable
    from pipepar.model.source.import_path import source_file
    from pipepar.model.source.open_source import is_factory

    model = source_file(planned.model) if is_factory(planned.model) else Path(planned.model)
    written = {"--output": options.output, "--trace": options.trace}
    read = {"MODEL": model, "--input": planned.file, "--cluster": options.cluster}
    outputs = {option: path for option, path in written.items() if path is not None}
    for option, path in outputs.items():
        require_writable(option, path)
    require_distinct(outputs, {name: path for name, path in read.items() if path is not None})


def _planning(planned: Planned, options: _Options, world: World) -> OfflinePlan | None:
    """Return the plan on the root, None on other ranks. *Collective.*"""
    from pipepar.jobs.plan_on_ranks import plan_measured
    from pipepar.jobs.planned_job import example_for, planned_model
    from pipepar.plan.cluster import read_cluster
    from pipepar.planner.plan_offline import plan_model

    if options.profile or (world.size > 1 and options.cluster is None):
        return plan_measured(world, planned, options.request, options.stages, _note, options.device)
    if not world.is_root:
        return None
    cluster = None if options.cluster is None else read_cluster(options.cluster)
    module = planned_model(planned)
    (args, kwargs), samples = example_for(planned, module, options.request)
    request = replace(options.request, samples=samples)
    return plan_model(module, args, kwargs, options.stages, cluster, request)


def _note(sentence: str) -> None:
    typer.echo(f"note: {sentence}", err=True)


def _write(planning: OfflinePlan, options: _Options) -> None:
    from pipepar.files import write_whole
    from pipepar.trace import write_chrome_trace

    if planning.plan is not None and options.output is not None:
        write_whole(options.output, planning.plan.to_json())
    if planning.choice is not None and options.trace is not None:
        write_chrome_trace(options.trace, planning.choice.prediction.timeline.spans)


def _print(planning: OfflinePlan, options: _Options) -> None:
    from pipepar.cli.show_cuts import print_cuts
    from pipepar.cli.show_plan import print_prediction, print_shares
    from pipepar.cli.terminal import UNBOUNDED, open_console

    console = open_console(stdout=True, width=UNBOUNDED)
    if options.show_cuts:
        print_cuts(planning.table, planning.plan, console)
    if planning.plan is None:
        return
    if planning.choice is None:
        print_shares(planning.plan, console)
    else:
        print_prediction(planning.choice, console, measured=options.cluster is None)
    if planning.advice is not None:
        console.print(f"[yellow]note:[/] {planning.advice}")
    for path in (options.output, options.trace):
        if path is not None:
            console.print(f"wrote {path}", markup=False, soft_wrap=True)
