"""Opens the input of a job, and converts its samples to the values that enter the graph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

from pipepar.comm.world import World
from pipepar.data.readers.cast import CastReader
from pipepar.data.readers.labels import LabelledReader, read_labels
from pipepar.data.readers.open_prepared import open_arrays, open_prepared
from pipepar.data.readers.pixels import as_pixel_values, process_arrays, process_pictures
from pipepar.data.readers.reader import Feed, Reader
from pipepar.data.readers.registry import find_input_format, suffixes_of
from pipepar.data.readers.text_samples import TextRules
from pipepar.data.readers.tokenized_text import TokenizedOptions, open_tokenized
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError
from pipepar.jobs.failing_sample import depends_on_samples, fault_of_one_sample
from pipepar.jobs.options import Job
from pipepar.microbatch import SOURCE, Fault, MicroBatch, Value
from pipepar.model.capture.graph import Graph
from pipepar.model.source.import_path import UserFunction, import_path
from pipepar.model.source.made_up_inputs import Example
from pipepar.tasks.model_folder import ModelFolder, classes_of
from pipepar.trace import Tracer


def open_input(job: Job) -> Reader:
    """Open the input of a job and its labels.

    Raises:
        InputError: a file is missing or damaged, or the model does not accept its kind.
    """
    reader = _open(job)
    if job.torch_dtype is not None:
        reader = CastReader(reader, job.torch_dtype)
    if job.labels is None:
        return reader
    classes = classes_of(job.folder)
    if classes.problem in ("regression", "multi_label_classification"):
        raise InputError(
            f"--labels {job.labels} is one class per sample, but {job.model} was trained for "
            f"{classes.problem}; leave the option out"
        )
    return LabelledReader(reader, read_labels(job.labels, classes.names), job.labels)


def agree_on_input(
    world: World, reader: Reader | None, micro_batch: int, lenient: bool
) -> tuple[int, Example]:
    """Return the number of samples and example arguments of a micro-batch. *Collective.*

    Args:
        world: all ranks.
        reader: the input on rank 0, None elsewhere.
        micro_batch: rows of the example.
        lenient: see `example_of`.

    Returns:
        The number of samples, and the example of `example_of`, the same shapes on every rank.
    """
    found = world.together(
        lambda: None if reader is None else example_of(reader, micro_batch, lenient)
    )
    text = ""
    if reader is not None and found is not None:
        args, kwargs = found
        named = {name: _outline(tensor) for name, tensor in kwargs.items()}
        text = json.dumps([len(reader), [_outline(tensor) for tensor in args], named])
    count, outlines, named = json.loads(world.broadcast(text))
    return count, (tuple(map(_blank, outlines)), {name: _blank(o) for name, o in named.items()})


def example_of(reader: Reader, micro_batch: int, lenient: bool = False) -> Example:
    """Return positional and keyword arguments with the shapes and dtypes of a micro-batch.

    Only the shapes and dtypes of a few samples are used: the returned CPU tensors are not
    initialised.

    Args:
        reader: the input.
        micro_batch: rows of the example; fewer if the input has fewer.
        lenient: whether another sample may be used if the first ones cannot be read.

    Raises:
        InputError: the first samples cannot be read, or if lenient, no sample can be read.
        StageError: a function of the user's failed; the cause is chained to it.
    """
    found = reader.example()
    if found.fault is not None and lenient:
        found = next((feed for feed in reader.feeds(1) if feed.fault is None), found)
    if found.fault is not None:
        raise found.fault
    rows = min(micro_batch, len(reader)) or len(found.samples)

    def blank(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype)

    kwargs = {name: blank(tensor) for name, tensor in found.kwargs.items()}
    return tuple(map(blank, found.args)), kwargs


def feed_all(
    reader: Reader,
    micro_batch: int,
    graph: Graph,
    tracer: Tracer,
    done: SampleSet,
    lenient: bool,
) -> Iterator[MicroBatch]:
    """Yield the input as micro-batches of the values that enter the graph.

    Args:
        reader: the input.
        micro_batch: samples per micro-batch.
        graph: the captured model.
        tracer: records the times of reading.
        done: samples to leave out, by whole micro-batches.
        lenient: whether an error that depends on the samples becomes the error of the micro-batch
            instead of being raised.

    Raises:
        InputError: a sample cannot be read, or the graph does not accept it.
        StageError: a function of the user's failed; the cause is chained to it.
    """
    tracer.enter("source", 0)
    begin = tracer.clock.now()
    for index, feed in enumerate(reader.feeds(micro_batch, done)):
        if feed.fault is not None and not lenient:
            raise fault_of_one_sample(reader, feed.samples.tolist(), feed.fault)
        microbatch = _microbatch(index, feed, graph, lenient)
        tracer.record("source", index, begin, tracer.clock.now())
        yield microbatch
        tracer.enter("source", index + 1)
        begin = tracer.clock.now()


def _microbatch(index: int, feed: Feed, graph: Graph, lenient: bool) -> MicroBatch:
    """Return the micro-batch of a feed.

    If lenient, it has an error instead of values if its samples cannot be read or do not fit the
    graph.
    """
    values: tuple[Value, ...] = ()
    error = None
    try:
        if feed.fault is not None:
            raise feed.fault
        values = tuple(graph.flatten_inputs(feed.args, feed.kwargs))
    except PipeparError as problem:
        if not (lenient and depends_on_samples(problem)):
            raise
        error = Fault.of(SOURCE, problem)
    return MicroBatch(index, values, feed.samples, feed.columns, error)


def _open(job: Job) -> Reader:
    kind = find_input_format(job.input).kind
    if job.preprocess is not None:
        prepare = import_path(job.preprocess, UserFunction.PREPROCESS)
        return open_prepared(job.input, prepare, f"--preprocess {job.preprocess}", job.lenient)
    if kind == "arrays":
        return _open_arrays(job)
    folder = job.folder
    if folder is None:
        lacking = "tokenizer" if kind == "text" else "image processor"
        raise InputError(
            f"input {job.input} is {kind}, but {job.model} has no {lacking}; give --preprocess "
            f"module:function, a Hugging Face folder as MODEL, or arrays ({suffixes_of('arrays')}) "
            "as INPUT"
        )
    if kind == "pictures":
        prepare = process_pictures(folder.processor())
        return open_prepared(job.input, prepare, f"the image processor of {job.model}")
    return _open_text(job, folder)


def _open_text(job: Job, folder: ModelFolder) -> Reader:
    required_text = job.resolved_task.required_text
    options = TokenizedOptions(
        job.max_length,
        pad_to_limit=job.padding == "max_length",
        token_columns=job.reads_tokens,
        rules=TextRules(required_text(folder) if required_text else "", job.lenient),
    )
    return open_tokenized(job.input, folder.tokenizer(), options)


def _open_arrays(job: Job) -> Reader:
    """Open arrays; for a task with pictures, pass a single array as ``pixel_values``.

    The image processor converts such an array if it is uint8. All other arrays stay unchanged.
    """
    reader = open_arrays(job.input)
    folder = job.folder
    if folder is None or not job.resolved_task.takes_pixels:
        return reader
    example = reader.example()
    tensors = [*example.args, *example.kwargs.values()]
    if len(tensors) > 1:
        return reader
    if tensors[0].dtype != torch.uint8:
        return open_prepared(job.input, as_pixel_values, f"reading {job.input}")
    prepare = process_arrays(folder.processor())
    return open_prepared(job.input, prepare, f"the image processor of {job.model}")


def _outline(tensor: torch.Tensor) -> list[Any]:
    """Return the name of the dtype and the sizes, for JSON."""
    return [str(tensor.dtype).removeprefix("torch."), *tensor.shape]


def _blank(outline: list[Any]) -> torch.Tensor:
    """Return an uninitialised CPU tensor with the dtype and sizes of `_outline`."""
    dtype, *shape = outline
    return torch.empty(shape, dtype=getattr(torch, dtype))
