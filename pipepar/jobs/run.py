"""A whole run from input file to output file: what `pipepar run` does once its options are read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

from pipepar.comm.world import World
from pipepar.data.readers.reader import Feed, Reader
from pipepar.engine.assembly import Assembly, assemble
from pipepar.errors import InputError, PlanError
from pipepar.files import require_apart, require_writable
from pipepar.host.device_context import DeviceContext, open_device_context
from pipepar.jobs.inputs import agree_on_input, open_input
from pipepar.jobs.options import Job, check_options
from pipepar.jobs.output_checks import check_outputs
from pipepar.jobs.outputs import Sink
from pipepar.jobs.quarantine import errors_of
from pipepar.jobs.resuming import Resuming
from pipepar.jobs.shared_folder import replica
from pipepar.jobs.work import Work
from pipepar.model.capture.graph import Graph
from pipepar.model.source.import_path import source_file
from pipepar.model.source.open_source import Source, open_source
from pipepar.plan.placement import Ends
from pipepar.plan.plan import Plan
from pipepar.planner.advice import advice
from pipepar.planner.choice import MICRO_BATCH, Choice, PlanRequest
from pipepar.planner.static_shapes import require_alone, require_batches, require_one_length
from pipepar.progress import NOBODY, Display
from pipepar.report.summary import RunSummary, summarise
from pipepar.supervision.stopping import Asked, Halt, Stopped, halt_if_asked, nobody_asked, reached
from pipepar.trace import Span, Tracer, write_chrome_trace

__all__ = ["Job", "run_job"]


def run_job(
    world: World, job: Job, display: Display = NOBODY, asked_to_stop: Asked = nobody_asked
) -> RunSummary:
    """Run a job on every rank of the world. *Collective.*

    Rank 0 reads the input, the last rank writes the output. What can be checked is checked before
    the work starts; the output appears under its name when all of it is there.

    Args:
        world: all ranks.
        job: what the user asked for.
        display: rank 0's is told how far the work is.
        asked_to_stop: what, if anything, tells rank 0 to begin no more samples.

    Raises:
        PipeparError: something the user named is missing or does not fit.
    """
    world.together(lambda: _preflight(world, job))
    display = display if world.is_root else NOBODY
    try:
        return _run_job(world, job, display, asked_to_stop)
    except Halt as halt:
        return RunSummary(0, 0.0, (), stopped=Stopped(halt.by))


def _run_job(world: World, job: Job, display: Display, asked_to_stop: Asked) -> RunSummary:
    with ExitStack() as held:
        with _visible(world, job) as seen:
            sink = world.together(lambda: _sink(world, seen, held))
            resuming = Resuming(world, job, sink, display.note)
            job, seen = (replace(each, micro_batch=resuming.micro_batch) for each in (job, seen))
            opened = _open(world, seen, sink, resuming)
            source = world.together(lambda: _source(world, seen))
        context = open_device_context(world, job.device, display.note)
        tracer = Tracer(world.rank, job.trace is not None, context.clock(), world.heartbeat.tell)
        pause = partial(halt_if_asked, world, asked_to_stop)
        pause()
        assembly = _assembled(world, job, opened, source, context, tracer, display, pause)
        del source  # a factory's model, whole; the stage has what it needs of it
        return _run(world, job, opened, assembly, tracer, display, asked_to_stop)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a job names, open; but for the model, which is let go once its stages are loaded."""

    reader: Reader | None
    """The input, on rank 0."""
    sink: Sink | None
    """The output, on the last rank."""
    count: int
    """Number of samples."""
    example: Feed
    """A micro-batch without its values."""
    plan: Plan | None
    """The plan that the user gave, on rank 0."""
    resuming: Resuming
    """What an earlier run has left."""


@contextmanager
def _visible(world: World, job: Job) -> Iterator[Job]:
    """The job with a model that this rank sees too, but for its weights."""
    if not (job.weights_from == "root" and job.is_folder):
        yield job
        return
    with replica(world, Path(job.model)) as folder:
        yield replace(job, model=str(folder))


def _sink(world: World, job: Job, held: ExitStack) -> Sink | None:
    sink = Ends.of_files(world.size).sink
    return held.enter_context(Sink(job)) if world.rank == sink else None


def _open(world: World, job: Job, sink: Sink | None, resuming: Resuming) -> _Opened:
    reader = world.together(
        lambda: open_input(job) if world.rank == Ends.of_files(world.size).source else None
    )
    plan = world.together(lambda: _read_plan(world, job))
    count, example = agree_on_input(world, reader, _example_rows(job, plan), job.lenient)
    return _Opened(reader, sink, count, example, plan, resuming)


def _assembled(
    world: World,
    job: Job,
    opened: _Opened,
    source: Source,
    context: DeviceContext,
    tracer: Tracer,
    display: Display,
    pause: Callable[[], None],
) -> Assembly:
    assembly = assemble(
        world,
        source,
        opened.example.args,
        opened.example.kwargs,
        context=context,
        request=PlanRequest(opened.count, job.micro_batch, job.depth),
        plan=opened.plan,
        ends=Ends.of_files(world.size),
        weights_from_root=job.weights_from_root,
        loading=display.weights,
        inspect=lambda graph: _check(graph, job, opened, display, source, context),
        note=display.note,
        watch=tracer.record_beside if job.trace is not None else None,
        pause=pause,
    )
    if assembly.agreed.choice is not None and opened.count:
        _tell(assembly.agreed.choice, job, display)
    return assembly


def _tell(choice: Choice, job: Job, display: Display) -> None:
    """What was planned, how to have the same again, and what would be faster."""
    prediction = choice.prediction
    target = prediction.target
    again = f"; --micro-batch {target.micro_batch} repeats it bit for bit"
    display.note(
        f"micro-batches of {target.micro_batch}, depth {target.depth}, predicted "
        f"{prediction.samples_per_second:,.1f} samples/s{'' if job.micro_batch else again}"
    )
    better = advice(choice, target.hardware.devices)
    if better is not None:
        display.note(better)


def _example_rows(job: Job, plan: Plan | None) -> int:
    """Samples to capture the model with; most models then take any number."""
    return job.micro_batch or (plan and plan.micro_batch) or MICRO_BATCH


def _run(
    world: World,
    job: Job,
    opened: _Opened,
    assembly: Assembly,
    tracer: Tracer,
    display: Display,
    asked_to_stop: Asked,
) -> RunSummary:
    sink, count = opened.sink, opened.count
    done, alone = opened.resuming.begin(sink, assembly.agreed, count)
    if done:
        display.note(f"resuming: {len(done):,} of {count:,} samples are done already")
    work = Work(world, opened.reader, sink, assembly, job.lenient, tracer, display, asked_to_stop)
    begin = time.perf_counter()
    with assembly.explained():
        work.do(done, alone)
    written = sink.finish() if sink else 0
    seconds = time.perf_counter() - begin
    assembly.wiring.close()
    by = asked_to_stop() if world.is_root else ""
    stopped = reached(world, assembly.placement.ends.sink, by, written, count)
    choice = assembly.agreed.choice
    summary = summarise(
        world,
        tracer,
        assembly.stage.weight_bytes if assembly.stage else 0,
        assembly.threads,
        (stopped.done if stopped else count) - len(done),
        seconds,
        context=assembly.context,
        confusion=sink.confusion() if sink else None,
        failed=sink.failed if sink else 0,
        predicted=choice.prediction.samples_per_second if choice else None,
    )
    if job.trace is not None:
        _write_trace(world, job.trace, tracer, begin)
    return replace(summary, stopped=stopped)


def _preflight(world: World, job: Job) -> None:
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
    require_apart(written, {name: path for name, path in named.items() if path is not None})


def _check(
    graph: Graph,
    job: Job,
    opened: _Opened,
    display: Display,
    source: Source,
    context: DeviceContext,
) -> None:
    reader = opened.reader
    limitation = graph.limitation(job.model)
    if limitation:
        display.note(limitation)
    check_outputs(graph, job, reader)
    if reader is not None:
        require_batches(graph, len(reader), _example_rows(job, opened.plan), "--micro-batch")
        if job.pads_texts and job.padding == "longest":
            require_one_length(graph)
        if job.lenient:
            require_alone(graph)
    opened.resuming.check(graph, source, context, opened.count)


def _source(world: World, job: Job) -> Source:
    values = world.is_root
    return open_source(job.model, job.resolved_task.head, job.weights, values, job.torch_dtype)


def _read_plan(world: World, job: Job) -> Plan | None:
    if job.plan is None or not world.is_root:
        return None
    try:
        return Plan.from_json(job.plan.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PlanError) as error:
        raise InputError(
            f"--plan {job.plan} cannot be used: {error}; give a file that pipepar plan -o wrote"
        ) from error


def _write_trace(world: World, path: Path, tracer: Tracer, begin: float) -> None:
    """One timeline for all ranks; the clocks are aligned where the work began."""
    own = (replace(span, begin=span.begin - begin, end=span.end - begin) for span in tracer.spans)
    texts = world.all_gather(json.dumps(list(map(astuple, own))))
    if world.is_root:
        write_chrome_trace(path, [Span(*fields) for text in texts for fields in json.loads(text)])
