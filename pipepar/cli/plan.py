"""`pipepar plan`: which stage would get what, without running anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pipepar.cli.arguments import Model, Preprocess

if TYPE_CHECKING:
    from rich.table import Table

    from pipepar.plan.plan import Plan
    from pipepar.runtime.examples import Planned
    from pipepar.runtime.planning import Planning
    from pipepar.runtime.prediction import Prediction

_BAR: Final = 20
_MICRO_BATCH: Final = 32  # as `pipepar run` takes it


def plan(
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
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples that travel together, to predict times with --cluster.",
            show_default=str(_MICRO_BATCH),
            min=1,
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
            help="The input of the job to plan for; its first samples are the example. A folder "
            "needs none where its model, for this --task, takes text or pictures: its "
            "configuration says their size.",
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
        typer.Option(
            help="Write the timeline predicted with --cluster, for Perfetto or chrome://tracing."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="What a Hugging Face model is to do.", show_default="feature-extraction"),
    ] = None,
) -> None:
    """Cut a model into stages and show them, without weights and without ranks.

    A model too large for this machine can be planned on it: of a folder, config.json is enough.

    [bold]Plan a job, then run it[/bold]

        pipepar plan ./all-MiniLM-L6-v2 --stages 4 --input passages.txt -o plan.json

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt out.npy --plan plan.json

    [bold]See where one's own model can be cut[/bold]

        pipepar plan mypackage.models:make --shape 2x3x224x224 --show-cuts | less

    [bold]Balance a model over devices that differ, before one has them[/bold]

        pipepar plan ./vit --cluster cluster.toml --micro-batch 64 --trace predicted.json
    """
    from pipepar.errors import PipeparError
    from pipepar.files import write_whole
    from pipepar.runtime.examples import Planned
    from pipepar.trace import write_chrome_trace

    try:
        planned = Planned(model, task, example, preprocess, shape or ())
        asked = _Asked(stages, cluster, micro_batch, show_cuts, output, trace)
        _check(planned, asked)
        planning = _planning(planned, asked)
        made, prediction = planning.plan, planning.prediction
        if made is not None and output is not None:
            write_whole(output, made.to_json())
        if prediction is not None and trace is not None:
            write_chrome_trace(trace, prediction.timeline.spans)
    except (PipeparError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if show_cuts:
        from pipepar.cli.cuts import print_cuts

        print_cuts(planning.table, made)
    if made is not None:
        _print_plan(made, prediction, asked)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options, as they were given."""

    stages: int | None
    cluster: Path | None
    micro_batch: int | None
    show_cuts: bool
    output: Path | None
    trace: Path | None


def _check(planned: Planned, asked: _Asked) -> None:
    """Refuse what can be refused before the model is captured, which may take minutes."""
    from pipepar.errors import InputError
    from pipepar.runtime.examples import check_planned

    no_plan = asked.stages is None and asked.cluster is None
    if no_plan and (asked.output is not None or not asked.show_cuts):
        raise InputError(
            "found no --stages, expected how many; give --stages N or --cluster FILE.toml for a "
            "plan, or --show-cuts without -o to see where the model can be cut"
        )
    for option, value in (("--micro-batch", asked.micro_batch), ("--trace", asked.trace)):
        if value is not None and asked.cluster is None:
            raise InputError(
                f"found {option} {value} without --cluster, expected devices to predict times for; "
                f"give --cluster FILE.toml too, or leave {option} out"
            )
    check_planned(planned)
    _check_written(planned, asked)


def _check_written(planned: Planned, asked: _Asked) -> None:
    from pipepar.files import require_apart, require_writable
    from pipepar.model.source import is_factory

    model = None if is_factory(planned.model) else Path(planned.model)
    written = {"--output": asked.output, "--trace": asked.trace}
    read = {"MODEL": model, "--input": planned.file, "--cluster": asked.cluster}
    outputs = {option: path for option, path in written.items() if path is not None}
    for option, path in outputs.items():
        require_writable(option, path)
    require_apart(outputs, {name: path for name, path in read.items() if path is not None})


def _planning(planned: Planned, asked: _Asked) -> Planning:
    from pipepar.model.source import open_source
    from pipepar.plan.cluster import read_cluster
    from pipepar.runtime.examples import example_for
    from pipepar.runtime.planning import plan_model
    from pipepar.runtime.prediction import Target

    target = None
    if asked.cluster is not None:
        target = Target(read_cluster(asked.cluster), asked.micro_batch or _MICRO_BATCH)
    module = open_source(planned.model, planned.task, values=False).module
    args, kwargs = example_for(planned, module)
    return plan_model(module, args, kwargs, asked.stages, target)


def _print_plan(made: Plan, prediction: Prediction | None, asked: _Asked) -> None:
    from pipepar.cli.cuts import open_wide_console
    from pipepar.cli.predicted import print_prediction

    console = open_wide_console()
    if prediction is None:
        console.print(_table(made))
    else:
        print_prediction(made, prediction, console)
    for path in (asked.output, asked.trace):
        if path is not None:
            console.print(f"wrote {path}")


def _table(made: Plan) -> Table:
    from rich.table import Table

    from pipepar.cli.predicted import received
    from pipepar.runtime.figures import bar, readable_bytes

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "operations", "weights", "compute"):
        table.add_column(column, justify="right")
    table.add_column(min_width=_BAR)
    table.add_column("receives")
    largest = max((stage.flops for stage in made.stages), default=0) or 1
    total = sum(stage.flops for stage in made.stages) or 1
    for stage in made.stages:
        table.add_row(
            str(stage.index),
            f"{stage.begin}-{stage.end - 1}",
            readable_bytes(stage.weight_bytes),
            f"{stage.flops / total:.0%}",
            bar(stage.flops / largest, _BAR),
            received(made, stage.index),
        )
    return table
