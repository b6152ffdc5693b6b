"""`pipepar run`: a model, an input, an output file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipepar.cli.arguments import Device, Dtype, Model, Preprocess
from pipepar.cli.catalogs import input_help, output_help, task_help

if TYPE_CHECKING:
    from pipepar.comm.world import World


def run(  # noqa: PLR0913 - the options of a command
    model: Model,
    input_path: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help=input_help()),
    ],
    output_path: Annotated[
        Path,
        typer.Argument(metavar="OUTPUT", help=output_help()),
    ],
    task: Annotated[str | None, typer.Option(help=task_help(), show_default=False)] = None,
    preprocess: Preprocess = None,
    postprocess: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Makes the results. Given the model's own output for a micro-batch, it returns a "
            "tensor or a dict of tensors, a row a sample, or a list of one JSON value a sample "
            "(for .jsonl).",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="The samples' right classes, for accuracy, precision and recall at the end: "
            ".npy of integers, .txt of a name or number a line, .jsonl (field 'label')."
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples that travel together. Another number may change a result's last bits; "
            "naming it repeats a run bit for bit.",
            min=1,
            show_default="the plan's (32 if it says nothing), or measured to be best",
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Micro-batches that may wait on each end of a channel.",
            min=1,
            max=1000,
            show_default="the plan's, or 2, or 1 where memory is short",
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Cut a text after so many tokens.", min=1)
    ] = None,
    padding: Annotated[
        Literal["longest", "max_length"],
        typer.Option(
            help="Pad texts to the longest of their micro-batch, or all to --max-length (or "
            "the tokenizer's own limit): for a model that can only be captured for one length."
        ),
    ] = "longest",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint with the weights of a factory's model: .safetensors, .bin, .pt, .pth, "
            "or the .index.json of several. Without one, rank 0 calls the factory and sends the "
            "others their stages' values."
        ),
    ] = None,
    weights_from: Annotated[
        Literal["disk", "root"],
        typer.Option(
            help="Who reads the weights. disk: every rank its own stage's, from a file system that "
            "all ranks see. root: rank 0, which sends the others theirs.",
        ),
    ] = "disk",
    dtype: Dtype = "auto",
    device: Device = "auto",
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Use a plan made by 'pipepar plan -o FILE'.",
            show_default="made here, of measured times",
        ),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a timeline for Perfetto or chrome://tracing.")
    ] = None,
    on_error: Annotated[
        Literal["stop", "skip"],
        typer.Option(
            help="When a sample cannot be read or computed. stop: the job ends, and names it. "
            "skip: those of its micro-batch are tried one by one at the end; OUTPUT.errors.jsonl "
            "tells (id, stage, error) which fail alone too, and their rows are null (.jsonl), NaN "
            "or, where there is none, 0.",
        ),
    ] = "stop",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with what an earlier run of this job has left of OUTPUT, if it has. The "
            "model, the input and what decides the results must be the same; the number of ranks, "
            "the plan and the depth may differ.",
        ),
    ] = False,
) -> None:
    """Run a model over a file, one stage of its layers on each rank.

    Each rank owns one contiguous stage and loads only that stage's weights; micro-batches stream
    from stage to stage. Without mpirun it runs in one process.

    [bold]Sentence embeddings with four ranks[/bold]

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt embeddings.npy

    [bold]Your own model on an array, weights from a file[/bold]

        mpirun -n 2 pipepar run mypackage.models:make images.npy logits.npy --weights w.safetensors

    [bold]Classes of pictures, and how many are right[/bold]

        mpirun -n 4 pipepar run ./vit photos out.jsonl --task image-classification --labels y.txt

    [bold]A GPU for each rank[/bold]

        mpirun -n 4 pipepar run ./llama passages.txt embeddings.npy --device cuda

    [bold]Your own model on text, prepared by a function of yours[/bold]

        mpirun -n 2 pipepar run my.models:make in.txt out.npy --preprocess my.texts:encode

    [bold]The same command again, after the job was ended[/bold]

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt embeddings.npy --resume

    A job that gets SIGUSR1 or SIGTERM finishes what is under way and exits with status 75.
    """
    from pipepar.supervision.signals import hold

    hold()

    from rich.markup import escape

    from pipepar.cli.terminal import loading, open_console, progress
    from pipepar.comm.world import World
    from pipepar.errors import PipeparError
    from pipepar.host.threads import crowded
    from pipepar.jobs.output.quarantine import errors_of
    from pipepar.jobs.run import Job, run_job
    from pipepar.progress import Display
    from pipepar.report.summary import print_summary
    from pipepar.supervision.failure import FailTogether
    from pipepar.supervision.stopping import STOPPED, listening

    job = Job(
        model,
        input_path,
        output_path,
        task=task,
        micro_batch=micro_batch,
        depth=depth,
        weights=weights,
        weights_from=weights_from,
        dtype=dtype,
        device=device,
        max_length=max_length,
        padding=padding,
        plan=plan,
        trace=trace,
        preprocess=preprocess,
        postprocess=postprocess,
        labels=labels,
        on_error=on_error,
        resume=resume,
    )
    console = open_console()
    try:
        world = World.start()
    except (PipeparError, ImportError, RuntimeError) as error:  # no MPI, or the wrong one
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None

    def note(sentence: str) -> None:
        console.print(f"[yellow]note:[/] {escape(sentence)}")

    def leave(name: str) -> None:
        console.show_cursor()
        console.print(f"ended at once by a second {name}; continue with --resume")

    display = Display(partial(progress, console), partial(loading, console), note)
    together = FailTogether(world, output_path)
    try:
        with together, listening(world, note, leave) as stop:
            warning = crowded(world)
            if warning and world.rank == min(world.cores):
                console.print(f"[yellow]warning:[/] {warning}")
            if world.is_root:
                console.print(_opening(world, model), markup=False)
            summary = run_job(world, job, display, stop.asked)
    except (Exception, KeyboardInterrupt) as error:  # a world of one; others have been ended
        console.print(together.report(error), markup=False)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    if world.is_root and summary.stopped:
        console.print(str(summary.stopped), markup=False)
    elif world.is_root:
        print_summary(summary, console)
        if summary.failed:
            samples = f"{summary.failed:,} sample{'s' * (summary.failed > 1)}"
            listed = escape(str(errors_of(output_path)))
            console.print(f"[yellow]warning:[/] {samples} failed and were left out: {listed}")
        console.print(f"wrote {output_path}", markup=False, soft_wrap=True)
    world.close()
    if summary.stopped:
        raise typer.Exit(STOPPED)


def _opening(world: World, model: str) -> str:
    hosts = len(set(world.hosts))
    ranks = f"{world.size} rank{'s' * (world.size > 1)}"
    return f"pipepar: {model} on {ranks}, {hosts} host{'s' * (hosts > 1)}"
