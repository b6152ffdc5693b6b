"""`pipepar run`: runs a model on an input file and writes an output file."""

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
            help="Function that makes the results. It takes the model's output for a micro-batch "
            "and returns a tensor or a dict of tensors, one row per sample, or a list of one JSON "
            "value per sample (for .jsonl).",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Correct class of each sample, to print accuracy, precision and recall at the "
            "end: .npy of integers, .txt with a name or number per line, .jsonl (field 'label')."
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples per micro-batch, the unit that is sent from stage to stage. Set it to "
            "repeat a run bit for bit: another number may change the last bits of a result.",
            min=1,
            show_default="the plan's, or 32 if the plan has none; without a plan by measurement",
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            help="Micro-batches that each end of a channel between two stages can buffer.",
            min=1,
            max=1000,
            show_default="the plan's, or 2, or 1 if memory is short",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Truncate texts to this number of tokens.",
            min=1,
            show_default="the tokenizer's limit",
        ),
    ] = None,
    padding: Annotated[
        Literal["longest", "max_length"],
        typer.Option(
            help="Pad texts to the longest of their micro-batch, or all to --max-length. Use "
            "max_length for a model that can be traced for one length only."
        ),
    ] = "longest",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint for the model of a factory: .safetensors, .bin, .pt, .pth, or the "
            ".index.json of a sharded checkpoint. Without it, rank 0 calls the factory and sends "
            "each rank the weights of its stage."
        ),
    ] = None,
    weights_from: Annotated[
        Literal["disk", "root"],
        typer.Option(
            help="disk: each rank reads the weights of its stage, from a file system that all "
            "ranks can access. root: rank 0 reads all weights and sends each rank those of its "
            "stage.",
        ),
    ] = "disk",
    dtype: Dtype = "auto",
    device: Device = "auto",
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Use this plan, written by 'pipepar plan -o FILE'.",
            show_default="a new plan, from measured times",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the measured timeline here, for Perfetto or chrome://tracing."),
    ] = None,
    on_error: Annotated[
        Literal["stop", "skip"],
        typer.Option(
            help="What to do if a sample cannot be read or computed. stop: end the job with an "
            "error that names the sample. skip: continue without it. The samples of a failed "
            "micro-batch are repeated one by one at the end, and OUTPUT.errors.jsonl lists those "
            "that fail alone (id, stage, error). Their rows are null (.jsonl), NaN, or 0 for "
            "integers.",
        ),
    ] = "stop",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue OUTPUT if an earlier run of this job has left it unfinished. The model, "
            "the input and all options that affect the results must be the same; the number of "
            "ranks, the plan and the depth may differ.",
        ),
    ] = False,
) -> None:
    """Run a model on every sample of a file, one stage of the model per rank.

    Start one rank per stage. Each rank loads only the weights of its stage, and micro-batches
    stream from stage to stage. Without a launcher, one process runs the whole model.

    [bold]Sentence embeddings on four ranks[/bold]

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt embeddings.npy

    [bold]The same in a Slurm job[/bold]

        srun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt embeddings.npy

    [bold]One GPU per rank[/bold]

        mpirun -n 4 pipepar run ./llama passages.txt embeddings.npy --device cuda

    [bold]Image classification, with accuracy[/bold]

        mpirun -n 4 pipepar run ./vit photos out.jsonl --task image-classification --labels y.txt

    [bold]Your own model and checkpoint, on an array[/bold]

        mpirun -n 2 pipepar run mypackage.models:make images.npy logits.npy --weights w.safetensors

    [bold]Your own model on text, with your own preprocessing[/bold]

        mpirun -n 2 pipepar run my.models:make in.txt out.npy --preprocess my.texts:encode

    [bold]Continue after the job was stopped or has failed[/bold]

        mpirun -n 4 pipepar run ./all-MiniLM-L6-v2 passages.txt embeddings.npy --resume

    On SIGUSR1 or SIGTERM, the job finishes the samples that have begun and exits with status 75.
    In a Slurm script with srun, #SBATCH --signal=USR1@120 sends it 120 s before the time limit.

    Exit status: 0 done, 1 error, 2 wrong usage, 75 stopped by a signal, 130 Ctrl-C.
    """
    from pipepar.supervision.signals import hold

    hold()

    from rich.markup import escape

    from pipepar.cli.terminal import loading, open_console, progress
    from pipepar.comm.world import World
    from pipepar.errors import PipeparError
    from pipepar.host.threads import shared_cores_warning
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
    except (PipeparError, ImportError, RuntimeError) as error:  # MPI is missing or unsuitable
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
            warning = shared_cores_warning(world)
            if warning and world.rank == min(world.cores):
                console.print(f"[yellow]warning:[/] {warning}")
            if world.is_root:
                console.print(_opening(world, model), markup=False)
            summary = run_job(world, job, display, stop.asked)
    except (Exception, KeyboardInterrupt) as error:  # in a world of one; else FailTogether aborts
        console.print(together.report(error), markup=False)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    if world.is_root and summary.stopped:
        console.print(str(summary.stopped), markup=False)
    elif world.is_root:
        print_summary(summary, console)
        if summary.failed:
            samples = f"{summary.failed:,} failed sample{'s' * (summary.failed > 1)}"
            errors = escape(str(errors_of(output_path)))
            console.print(f"[yellow]warning:[/] left out {samples}, listed in {errors}")
        console.print(f"wrote {output_path}", markup=False, soft_wrap=True)
    world.close()
    if summary.stopped:
        raise typer.Exit(STOPPED)


def _opening(world: World, model: str) -> str:
    hosts = len(set(world.hosts))
    ranks = f"{world.size} rank{'s' * (world.size > 1)}"
    return f"pipepar: {model} on {ranks}, {hosts} host{'s' * (hosts > 1)}"
