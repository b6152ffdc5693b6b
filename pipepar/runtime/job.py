"""A whole run from input file to output file: what `pipepar run` does once its options are read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

from pipepar.comm.world import World
from pipepar.data.arrays import open_arrays
from pipepar.data.feed import Feed, Reader, input_kind
from pipepar.data.text import open_text
from pipepar.data.writers import check_output, open_output
from pipepar.errors import InputError
from pipepar.microbatch import Value
from pipepar.model.capture import capture
from pipepar.model.fakes import params_on_meta
from pipepar.model.graph import Graph
from pipepar.model.source import Source, from_factory, from_huggingface
from pipepar.plan.plan import Plan
from pipepar.runtime.assembly import Assembly, assemble
from pipepar.runtime.loop import SAMPLES, Arrival, arrivals, run
from pipepar.runtime.planning import make_plan
from pipepar.runtime.summary import RunSummary, summarise
from pipepar.trace import Span, Tracer, write_chrome_trace

Progress: TypeAlias = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Given the number of samples, a context whose value is told how many more are done."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the user asked for."""

    model: str
    """A Hugging Face folder, or package.module:factory."""
    input: Path
    """Text or arrays."""
    output: Path
    """Where the results go; its suffix says how."""
    task: str = "feature-extraction"
    """What a Hugging Face model is to do."""
    micro_batch: int = 32
    """Samples that travel together, at least 1."""
    depth: int = 2
    """Micro-batches that may wait on each end of a channel, at least 1."""
    weights: Path | None = None
    """Safetensors file for a factory's model; None to take the factory's own values."""
    max_length: int | None = None
    """Tokens after which a text is cut; None for the tokenizer's own limit."""
    plan: Path | None = None
    """A plan made earlier; None to make one."""
    trace: Path | None = None
    """Where the timeline goes; None for nowhere."""

    @property
    def is_factory(self) -> bool:
        """Whether the model is named as package.module:factory."""
        return ":" in self.model and not Path(self.model).exists()


def run_job(world: World, job: Job, progress: Progress) -> RunSummary:
    """Run a job on every rank of the world. *Collective.*

    Rank 0 reads the input, the last rank writes the output. What can be checked is checked before
    the work starts; the output appears under its name when all of it is there.

    Raises:
        PipeparError: something the user named is missing or does not fit.
    """
    reader = world.together(lambda: _preflight(world, job))
    count, example = _agree_on_input(world, reader)
    source = world.together(lambda: _source(job))
    plan = world.together(lambda: _read_plan(world, job))
    assembly = assemble(
        world,
        source,
        example.args,
        example.kwargs,
        depth=job.depth,
        plan=plan,
        carried=(SAMPLES,),
    )
    del source  # a factory's model, whole; the stage has what it needs of it
    world.together(lambda: _check_outputs(assembly.graph, job.output))
    tracer = Tracer(world.rank, keep=job.trace is not None)
    begin = time.perf_counter()
    _work(world, job, assembly, tracer, reader, count, progress)
    seconds = time.perf_counter() - begin
    assembly.wiring.close()
    weight_bytes = assembly.stage.weight_bytes
    summary = summarise(world, tracer, weight_bytes, assembly.threads, count, seconds)
    if job.trace is not None:
        _write_trace(world, job.trace, tracer, begin)
    return summary


def plan_job(job: Job, stages: int) -> Plan:
    """The plan that a job on so many ranks would make for itself. *Local.*

    Raises:
        PipeparError: something the user named is missing, or cannot be cut so often.
    """
    example = _open_input(job).example()
    with params_on_meta():  # a model too large for this machine can be planned all the same
        module = _source(job).module
    graph = capture(module, example.args, example.kwargs)
    return make_plan(graph, stages)


def _preflight(world: World, job: Job) -> Reader | None:
    for name, number in (("--micro-batch", job.micro_batch), ("--depth", job.depth)):
        if number < 1:
            raise InputError(f"{name} is {number}, expected at least 1")
    if world.rank == world.size - 1:
        check_output(job.output)
    if world.rank != 0:
        return None
    if job.trace is not None and not job.trace.parent.is_dir():
        raise InputError(f"--trace {job.trace}: there is no folder {job.trace.parent}; create it")
    for other in (job.input, job.weights, job.plan):
        if (
            other is not None
            and job.output.exists()
            and other.exists()
            and other.samefile(job.output)
        ):
            raise InputError(f"output {job.output} is {other}, which it would replace; rename it")
    return _open_input(job)


def _open_input(job: Job) -> Reader:
    if input_kind(job.input) == "arrays":
        return open_arrays(job.input)
    if job.is_factory:
        raise InputError(
            f"input {job.input} is text, but {job.model} brings no tokenizer; give a Hugging Face "
            "folder as MODEL, or arrays (.npy, .npz, .safetensors) as INPUT"
        )
    return open_text(job.input, _tokenizer(job.model), job.max_length)


def _tokenizer(folder: str) -> Any:
    if not (Path(folder) / "config.json").is_file():
        raise InputError(
            f"model {folder}: found no config.json there, expected a Hugging Face folder, or "
            "package.module:factory; check the path"
        )
    from transformers import AutoTokenizer  # takes seconds; only text needs it

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"{folder} holds no tokenizer that transformers can load: {error}; "
            "copy tokenizer.json and tokenizer_config.json there"
        ) from error
    if tokenizer.pad_token is None:  # decoders were trained without; the mask hides it anyway
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _agree_on_input(world: World, reader: Reader | None) -> tuple[int, Feed]:
    """The number of samples, and an example: rank 0's, without its values elsewhere."""
    text = ""
    if reader is not None:
        example = reader.example()
        text = json.dumps(
            [
                len(reader),
                [_outline(tensor) for tensor in example.args],
                {name: _outline(tensor) for name, tensor in example.kwargs.items()},
            ]
        )
    count, args, kwargs = json.loads(world.broadcast(text))
    return count, Feed(
        torch.arange(0),
        tuple(_blank(outline) for outline in args),
        {name: _blank(outline) for name, outline in kwargs.items()},
    )


def _outline(tensor: torch.Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), *tensor.shape]


def _blank(outline: list[Any]) -> torch.Tensor:
    dtype, *shape = outline
    return torch.empty(shape, dtype=getattr(torch, dtype))


def _source(job: Job) -> Source:
    if job.is_factory:
        return from_factory(job.model, job.weights)
    if job.weights is not None:
        raise InputError(
            f"--weights {job.weights} goes with a factory, but {job.model} is a folder, whose own "
            "weights are read; leave the option out"
        )
    return from_huggingface(job.model, job.task)


def _read_plan(world: World, job: Job) -> Plan | None:
    if job.plan is None or world.rank != 0:
        return None
    try:
        return Plan.from_json(job.plan.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--plan {job.plan} cannot be read: {error}") from error


def _check_outputs(graph: Graph, path: Path) -> None:
    """Find out before the work whether the file can hold what the model returns."""
    names = list(_named(graph.unflatten_outputs([torch.empty(0) for _ in graph.outputs])))
    if path.suffix.lower() == ".npy" and len(names) != 1:
        raise InputError(
            f"the model returns {len(names)} tensors ({', '.join(names)}), a .npy file holds one; "
            "name an output that ends in .safetensors or .jsonl"
        )


def _named(outputs: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model's output by name; a single tensor is called "output"."""
    named = {}
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if isinstance(leaf, torch.Tensor):
            parts = (str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            named[".".join(parts) or "output"] = leaf
    return named


def _work(
    world: World,
    job: Job,
    assembly: Assembly,
    tracer: Tracer,
    reader: Reader | None,
    count: int,
    progress: Progress,
) -> None:
    wiring, last = assembly.wiring, world.size - 1
    if reader is not None:
        source = _feed(reader, job.micro_batch, assembly.graph, tracer)
    else:
        source = arrivals(wiring.inlets, tracer)
    results = run(assembly.program, source, wiring.outlets, tracer)
    if world.rank == last:
        results = _sink(results, job, assembly, count, tracer)
    if world.rank == 0:
        results = _shown(results, count, progress)
    for _ in results:
        pass


def _feed(reader: Reader, micro_batch: int, graph: Graph, tracer: Tracer) -> Iterator[Arrival]:
    begin = time.perf_counter()
    for index, feed in enumerate(reader.feeds(micro_batch)):
        values: dict[str, Value] = {SAMPLES: feed.samples}
        inputs = graph.flatten_inputs(feed.args, feed.kwargs)
        values.update(zip(graph.inputs, inputs, strict=True))
        tracer.record("source", index, begin, time.perf_counter())
        yield index, values
        begin = time.perf_counter()


def _sink(
    results: Iterator[Arrival], job: Job, assembly: Assembly, count: int, tracer: Tracer
) -> Iterator[Arrival]:
    with open_output(job.output, count) as writer:
        for index, values in results:
            with tracer.span("sink", index):
                outputs = [values[name] for name in assembly.plan.outputs]
                named = _named(assembly.graph.unflatten_outputs(outputs))
                samples: torch.Tensor = values[SAMPLES]  # type: ignore[assignment]
                writer.write(samples, named)
            yield index, values


def _shown(results: Iterator[Arrival], count: int, progress: Progress) -> Iterator[Arrival]:
    with progress(count) as advance:
        for index, values in results:
            samples: torch.Tensor = values[SAMPLES]  # type: ignore[assignment]
            advance(len(samples))
            yield index, values


def _write_trace(world: World, path: Path, tracer: Tracer, begin: float) -> None:
    """One timeline for all ranks; the clocks are aligned where the work began."""
    mine = [(s.stage, s.kind, s.microbatch, s.begin - begin, s.end - begin) for s in tracer.spans]
    texts = world.all_gather(json.dumps(mine))
    if world.rank == 0:
        write_chrome_trace(path, [Span(*fields) for text in texts for fields in json.loads(text)])
