"""`pipepar run`: a run from the input file to the output file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipepar.comm.world import World
from pipepar.data.readers.reader import Reader
from pipepar.data.writers.journal import Fields
from pipepar.engine.assembly import Assembly, assemble, capture_together
from pipepar.engine.shared_source import SharedSource
from pipepar.errors import InputError, PlanError
from pipepar.files import require_distinct, require_writable
from pipepar.host.device_context import open_device_context
from pipepar.host.run_context import RunContext
from pipepar.jobs.inputs import agree_on_input, open_input
from pipepar.jobs.options import Job, check_options
from pipepar.jobs.output.checks import check_outputs
from pipepar.jobs.output.claim import OutputClaim, claim_output
from pipepar.jobs.output.quarantine import errors_of
from pipepar.jobs.output.resuming import Resuming
from pipepar.jobs.shared_folder import replica
from pipepar.jobs.work import Work
from pipepar.model.capture.graph import Graph
from pipepar.model.source.import_path import source_file
from pipepar.model.source.made_up_inputs import Example
from pipepar.model.source.open_source import open_source
from pipepar.plan.placement import Ends
from pipepar.plan.plan import Plan
from pipepar.planner.advice import advice
from pipepar.planner.choice import Choice
from pipepar.planner.plan_job import agree_on_plan
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.static_shapes import require_alone, require_batches, require_one_length
from pipepar.progress import NO_DISPLAY, Display
from pipepar.report.gather_record import Findings, gather_record, stage_record
from pipepar.report.run_record import RunRecord
from pipepar.report.timeline import write_timeline
from pipepar.supervision.stopping import (
    Halt,
    Stopped,
    StopRequest,
    halt_if_requested,
    never_stopped,
    reached,
)

__all__ = ["Job", "run_job"]


def run_job(
    world: World,
    job: Job,
    display: Display = NO_DISPLAY,
    stop_requested: StopRequest = never_stopped,
) -> RunRecord:
    """Run a job on every rank of the world. *Collective.*

    Rank 0 reads the input, the last rank writes the output. Options and files are checked before
    the work starts. The output gets its final name when it is complete.

    Args:
        world: all ranks.
        job: the options of the job.
        display: shows the progress on rank 0.
        stop_requested: returns, on rank 0, the name of the signal that stops the job, or "".

    Returns:
        The record of the run, the same on every rank; `stopped` is set if a signal stopped it.

    Raises:
        PipeparError: a file is missing, the model, the input and the options do not match, or the
            run fails.
    """
    world.together(lambda: _preflight(world, job))
    display = display if world.is_root else NO_DISPLAY
    try:
        return _run_job(world, job, display, stop_requested)
    except Halt as halt:
        return RunRecord(0, 0.0, (), stopped=Stopped(halt.by))


def _run_job(world: World, job: Job, display: Display, stop_requested: StopRequest) -> RunRecord:
    """Run a job after its preflight; raise Halt if a stop is requested before it computes."""
    with ExitStack() as held:
        with _local_model(world, job) as local:
            claim = world.together(lambda: _claim(world, local, held))
            resuming = Resuming.find(world, job, claim, display.note)
            job, local = (replace(each, micro_batch=resuming.micro_batch) for each in (job, local))
            opened = _open(world, local, claim, resuming)
            shared = world.together(lambda: _source(world, local))
        context = open_device_context(world, job.device, display.note)
        run = RunContext.begin(world, context, display, stop_requested, job.trace is not None)
        identity, assembly = _assemble(run, job, opened, shared)
        del shared  # frees the whole model of a factory; the stage has its own part
        return _run(job, opened, identity, assembly)


@dataclass(frozen=True, slots=True)
class _OpenFiles:
    """The input and output of a job, and the requirements of its plan."""

    reader: Reader | None
    """The input on rank 0, None elsewhere."""
    claim: OutputClaim | None
    """The output on the last rank, None elsewhere."""
    request: PlanRequest
    """The requirements of the plan, with the user's plan on rank 0."""
    count: int
    """Number of samples."""
    example: Example
    """Arguments of a micro-batch, without values."""
    resuming: Resuming
    """The unfinished output of an earlier run."""


@contextmanager
def _local_model(world: World, job: Job) -> Iterator[Job]:
    """Yield the job with a model that this rank can read. *Collective.*

    With the weights from the root, ranks other than 0 get a temporary copy of a model folder,
    without its weights. Otherwise the job is yielded unchanged.
    """
    if not (job.weights_from == "root" and job.is_folder):
        yield job
        return
    with replica(world, Path(job.model)) as folder:
        yield replace(job, model=str(folder))


def _claim(world: World, job: Job, held: ExitStack) -> OutputClaim | None:
    """Lock the output on the last rank until `held` is closed; return None elsewhere."""
    is_sink = world.rank == Ends.of_files(world.size).sink
    return held.enter_context(claim_output(job)) if is_sink else None


def _open(world: World, job: Job, claim: OutputClaim | None, resuming: Resuming) -> _OpenFiles:
    """Open the input and read the plan on rank 0, and agree on the samples. *Collective.*"""
    source = Ends.of_files(world.size).source
    reader = world.together(lambda: open_input(job) if world.rank == source else None)
    given = world.together(lambda: _read_plan(world, job))
    request = PlanRequest(None, job.micro_batch, job.depth, reorder=True, given=given)
    count, example = agree_on_input(world, reader, request.example_rows, job.lenient)
    return _OpenFiles(reader, claim, replace(request, samples=count), count, example, resuming)


def _assemble(
    run: RunContext, job: Job, opened: _OpenFiles, shared: SharedSource
) -> tuple[Fields, Assembly]:
    """Return the identity of the job, and this rank's stage, ready to run. *Collective.*"""
    stop_if_asked = partial(halt_if_requested, run.world, run.stop_requested)
    stop_if_asked()
    graph = capture_together(run, shared, *opened.example)
    identity = run.world.together(lambda: _check(graph, run, job, opened, shared))
    stop_if_asked()
    agreed = agree_on_plan(run, graph, opened.request, shared.held(run.device_context.device))
    stop_if_asked()
    assembly = assemble(run, shared, graph, agreed, Ends.of_files(run.world.size))
    if agreed.choice is not None and opened.count:
        _note_choice(agreed.choice, job, run.display)
    return identity, assembly


def _note_choice(choice: Choice, job: Job, display: Display) -> None:
    """Display the chosen plan, how to repeat it, and advice on a faster one."""
    prediction = choice.prediction
    target = prediction.target
    again = f"; --micro-batch {target.micro_batch} repeats it bit for bit"
    display.note(
        f"micro-batches of {target.micro_batch}, depth {target.depth}, predicted "
        f"{prediction.samples_per_second:,.1f} samples/s{'' if job.micro_batch else again}"
    )
    if choice.plan.ranks is not None:
        placed = ", ".join(map(str, choice.plan.ranks))
        display.note(f"the stages run, in order, on ranks {placed}: faster than in their order")
    better = advice(choice, target.hardware.devices)
    if better is not None:
        display.note(better)


def _run(job: Job, opened: _OpenFiles, identity: Fields, assembly: Assembly) -> RunRecord:
    """Compute the samples that are not done, and finish the output. *Collective.*

    Returns the record of the run, the same on every rank.
    """
    run, count = assembly.run, opened.count
    world = run.world
    sink, done, alone = opened.resuming.open_sink(opened.claim, identity, assembly.agreed, count)
    if done:
        run.display.note(f"resuming: {len(done):,} of {count:,} samples are done already")
    work = Work(assembly, opened.reader, sink, job.lenient)
    begin = time.perf_counter()
    with assembly.oom_explained():
        work.compute(done, alone)
    written = sink.finish() if sink else 0
    seconds = time.perf_counter() - begin
    assembly.wiring.close()
    by = run.stop_requested() if world.is_root else ""
    stopped = reached(world, assembly.placement.ends.sink, by, written, count)
    choice = assembly.agreed.choice
    findings = Findings(
        (stopped.done if stopped else count) - len(done),
        sink.confusion() if sink else None,
        choice.prediction.samples_per_second if choice else None,
        sink.failed if sink else 0,
    )
    share = stage_record(run, assembly.weight_bytes, seconds)
    record = gather_record(world, assembly.placement, share, findings)
    if job.trace is not None:
        write_timeline(world, job.trace, run.tracer, begin)
    return replace(record, stopped=stopped)


def _preflight(world: World, job: Job) -> None:
    """Check the options on every rank, and the paths of the files on rank 0.

    The trace must be writable. No file to write may be the same as another file of the job.
    """
    check_options(job)
    if not world.is_root:
        return
    written = {"output": job.output, "the list of failed samples": errors_of(job.output)}
    if job.trace is not None:
        require_writable("--trace", job.trace)
        written["--trace"] = job.trace
    named = {"input": job.input, "--weights": job.weights, "--plan": job.plan}
    named |= {
        "--labels": job.labels,
        "model": source_file(job.model) if job.is_factory else Path(job.model),
    }
    require_distinct(written, {name: path for name, path in named.items() if path is not None})


def _check(
    graph: Graph, run: RunContext, job: Job, opened: _OpenFiles, shared: SharedSource
) -> Fields:
    """Refuse a graph that does not fit the job, or to resume the output of another job.

    Also displays a limitation of the graph. Returns the identity of the job on rank 0, and an
    empty dict elsewhere.
    """
    reader, request = opened.reader, opened.request
    limitation = graph.limitation(job.model)
    if limitation:
        run.display.note(limitation)
    check_outputs(graph, job, reader)
    if reader is not None:
        require_batches(graph, len(reader), request.example_rows, "--micro-batch")
        if job.tokenises_input and job.padding == "longest":
            require_one_length(graph)
        if job.lenient:
            require_alone(graph)
    return opened.resuming.check(graph, shared.source, run.device_context, opened.count)


def _source(world: World, job: Job) -> SharedSource:
    """Open the model on this rank; return it with the way its weights are distributed."""
    head, values = job.resolved_task.head, world.is_root
    source = open_source(job.model, head, job.weights, values, job.torch_dtype)
    return SharedSource(source, job.weights_from_root)


def _read_plan(world: World, job: Job) -> Plan | None:
    """Return the plan of --plan on rank 0; None on other ranks, or without that option.

    Raises InputError if the file cannot be read or has no valid plan.
    """
    if job.plan is None or not world.is_root:
        return None
    try:
        return Plan.from_json(job.plan.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PlanError) as error:
        raise InputError(
            f"--plan {job.plan} cannot be used: {error}; give a file that pipepar plan -o wrote"
        ) from error
