"""`pipepar plan`: which stage would get what, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from pipepar.plan.plan import Plan


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A Hugging Face model folder, or package.module:factory."
        ),
    ],
    stages: Annotated[int, typer.Option(help="Into how many stages to cut it.", min=1)],
    example: Annotated[
        Path,
        typer.Option(
            "--input", help="The input of the job to plan for; its first samples are the example."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the plan here, for 'pipepar run --plan'."),
    ] = None,
    task: Annotated[
        str, typer.Option(help="What a Hugging Face model is to do.")
    ] = "feature-extraction",
) -> None:
    """Cut a model into stages and show them, without weights and without ranks.

    [bold]Plan a job, then run it[/bold]

        pipepar plan ./all-MiniLM-L6-v2 --stages 4 --input passages.txt -o plan.json

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt out.npy --plan plan.json
    """
    from rich.console import Console

    from pipepar.errors import PipeparError
    from pipepar.runtime.job import Job, plan_job

    try:
        made = plan_job(Job(model, example, output or Path("plan.json"), task), stages)
        if output is not None:
            output.write_text(made.to_json(), encoding="utf-8")
    except (PipeparError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    console = Console()
    console.print(_table(made))
    if output is not None:
        console.print(f"wrote {output}", highlight=False)


def _table(made: Plan) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "operations", "weights", "compute", "", "receives"):
        table.add_column(column, justify="left" if column in ("", "receives") else "right")
    largest = max((stage.flops for stage in made.stages), default=0) or 1
    total = sum(stage.flops for stage in made.stages) or 1
    for stage in made.stages:
        bar = "█" * round(20 * stage.flops / largest)
        sources = [
            f"{', '.join(names)} from {producer}"
            for (producer, consumer), names in sorted(made.edges.items())
            if consumer == stage.index
        ]
        table.add_row(
            str(stage.index),
            f"{stage.begin}-{stage.end - 1}",
            f"{stage.weight_bytes / 2**20:,.1f} MiB",
            f"{stage.flops / total:.0%}",
            f"[green]{bar}[/][dim]{'░' * (20 - len(bar))}[/]",
            "; ".join(sources) or "the input",
        )
    return table
