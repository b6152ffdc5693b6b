"""`pipepar plan`: which stage would get what, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pipepar.cli.arguments import Model, Preprocess

if TYPE_CHECKING:
    from rich.table import Table

    from pipepar.plan.plan import Plan
    from pipepar.runtime.examples import Planned
    from pipepar.runtime.planning import Planning

_BAR: Final = 20


def plan(
    model: Model,
    stages: Annotated[
        int | None, typer.Option(help="Into how many stages to cut it, one for each rank.", min=1)
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
    """
    from pipepar.errors import PipeparError
    from pipepar.files import write_whole
    from pipepar.runtime.examples import Planned

    try:
        planned = Planned(model, task, example, preprocess, shape or ())
        _check(planned, stages, show_cuts, output)
        planning = _planning(planned, stages)
        made = planning.plan
        if made is not None and output is not None:
            write_whole(output, made.to_json())
    except (PipeparError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if show_cuts:
        from pipepar.cli.cuts import print_cuts

        print_cuts(planning.table, made)
    if made is not None:
        _print_plan(made, output)


def _check(planned: Planned, stages: int | None, show_cuts: bool, output: Path | None) -> None:
    """Refuse what can be refused before the model is captured, which may take minutes."""
    from pipepar.errors import InputError
    from pipepar.files import require_apart, require_writable
    from pipepar.model.source import is_factory
    from pipepar.runtime.examples import check_planned

    if stages is None and (output is not None or not show_cuts):
        raise InputError(
            "found no --stages, expected how many; give --stages N for a plan, or --show-cuts "
            "without -o to see where the model can be cut"
        )
    check_planned(planned)
    if output is None:
        return
    require_writable("--output", output)
    model = None if is_factory(planned.model) else Path(planned.model)
    named = {"MODEL": model, "--input": planned.file}
    read = {name: path for name, path in named.items() if path is not None}
    require_apart({"--output": output}, read)


def _planning(planned: Planned, stages: int | None) -> Planning:
    from pipepar.model.source import open_source
    from pipepar.runtime.examples import example_for
    from pipepar.runtime.planning import plan_model

    module = open_source(planned.model, planned.task, values=False).module
    args, kwargs = example_for(planned, module)
    return plan_model(module, args, kwargs, stages)


def _print_plan(made: Plan, output: Path | None) -> None:
    from pipepar.cli.cuts import open_wide_console

    console = open_wide_console()
    console.print(_table(made))
    if output is not None:
        console.print(f"wrote {output}")


def _table(made: Plan) -> Table:
    from rich.table import Table

    from pipepar.runtime.figures import bar, readable_bytes

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "operations", "weights", "compute"):
        table.add_column(column, justify="right")
    table.add_column(min_width=_BAR)
    table.add_column("receives")
    largest = max((stage.flops for stage in made.stages), default=0) or 1
    total = sum(stage.flops for stage in made.stages) or 1
    for stage in made.stages:
        sources = [
            f"{', '.join(names)} from {producer}"
            for (producer, consumer), names in sorted(made.edges.items())
            if consumer == stage.index
        ]
        table.add_row(
            str(stage.index),
            f"{stage.begin}-{stage.end - 1}",
            readable_bytes(stage.weight_bytes),
            f"{stage.flops / total:.0%}",
            bar(stage.flops / largest, _BAR),
            "; ".join(sources) or "the input",
        )
    return table
