"""`pipepar run`: a model, an input file, an output file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipepar.comm.world import World


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A Hugging Face model folder, or package.module:factory."
        ),
    ],
    input_path: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="Text (.txt: a sample a line; .jsonl: its field 'text') or arrays (.npy, .npz, "
            ".safetensors: a sample a row).",
        ),
    ],
    output_path: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT",
            help="Where results go, in the input's order: .npy, .safetensors, .jsonl.",
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            help="What a Hugging Face model is to do. feature-extraction: the mean over a text's "
            "tokens, not normalised."
        ),
    ] = "feature-extraction",
    micro_batch: Annotated[int, typer.Option(help="Samples that travel together.", min=1)] = 32,
    depth: Annotated[
        int, typer.Option(help="Micro-batches that may wait on each end of a channel.", min=1)
    ] = 2,
    max_length: Annotated[
        int | None, typer.Option(help="Cut a text after so many tokens.", min=1)
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Safetensors file with the weights of a factory's model."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Use a plan made by 'pipepar plan -o FILE'.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a timeline for Perfetto or chrome://tracing.")
    ] = None,
) -> None:
    """Run a model over a file, one stage of its layers on each rank.

    Each rank owns one contiguous stage and loads only that stage's weights; micro-batches stream
    from stage to stage. Without mpirun it runs in one process.

    [bold]Sentence embeddings with four ranks[/bold]

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt embeddings.npy

    [bold]Your own model on an array, weights from a file[/bold]

        mpirun -n 2 pipepar run mypackage.models:make images.npy logits.npy --weights w.safetensors
    """
    from pipepar.cli.terminal import open_console, progress
    from pipepar.comm.world import World
    from pipepar.errors import PipeparError
    from pipepar.runtime.failure import FailTogether, report
    from pipepar.runtime.job import Job, run_job
    from pipepar.runtime.summary import print_summary
    from pipepar.runtime.threads import crowded

    job = Job(
        model, input_path, output_path, task, micro_batch, depth, weights, max_length, plan, trace
    )
    console = open_console()
    try:
        world = World.start()
    except (PipeparError, ImportError, RuntimeError) as error:  # no MPI, or the wrong one
        console.print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(1) from None

    def show(total: int) -> AbstractContextManager[Callable[[int], None]]:
        return progress(console, total)

    try:
        with FailTogether(world):
            warning = crowded(world)
            if warning and world.rank == min(world.cores):
                console.print(f"[yellow]warning:[/] {warning}", highlight=False)
            if world.rank == 0:
                console.print(_opening(world, model), highlight=False)
            summary = run_job(world, job, show)
    except (Exception, KeyboardInterrupt) as error:  # a world of one; others have been ended
        console.print(report(world, error), markup=False, highlight=False)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    if world.rank == 0:
        print_summary(summary, console)
        console.print(f"wrote {output_path}", highlight=False)
    world.close()


def _opening(world: World, model: str) -> str:
    hosts = len(set(world.hosts))
    ranks = f"{world.size} rank{'s' * (world.size > 1)}"
    return f"pipepar: {model} on {ranks}, {hosts} host{'s' * (hosts > 1)}"
