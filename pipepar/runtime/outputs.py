"""From what leaves the last stage to the user's output file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch

from pipepar.data.answers import Answer, answered_by, as_tensors, named_tensors
from pipepar.data.blame import blame
from pipepar.data.classes import class_logits
from pipepar.data.confusion import Confusion, Tally
from pipepar.data.feed import Reader
from pipepar.data.labels import Labelled
from pipepar.data.tokens import entities, fillings
from pipepar.data.writer import Writer
from pipepar.data.writers import check_output, open_output
from pipepar.errors import InputError
from pipepar.microbatch import Value
from pipepar.model.graph import Graph
from pipepar.model.named import import_named
from pipepar.runtime.assembly import Assembly
from pipepar.runtime.folder import load_classes, load_tokenizer
from pipepar.runtime.inputs import carried_extras
from pipepar.runtime.loop import SAMPLES, Arrival
from pipepar.runtime.options import CLASSIFICATION, Job
from pipepar.trace import Tracer

_NOT_OF_NUMPY: Final = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class Sink:
    """Writes what leaves the last stage, and counts how often it was right. Local."""

    def __init__(self, job: Job) -> None:
        """Get ready; nothing is written yet.

        Args:
            job: its output, task, postprocess and labels count.

        Raises:
            InputError: the output cannot be written, or what the task needs is missing.
        """
        check_output(job.output)
        self._path = job.output
        self._what = f"--postprocess {job.postprocess}" if job.postprocess else job.resolved_task
        self._answer = _open_answer(job, self._what)
        self._tally = Tally(load_classes(job).names) if job.labels is not None else None

    def take(
        self, results: Iterator[Arrival], assembly: Assembly, count: int, tracer: Tracer
    ) -> Iterator[Arrival]:
        """Write all results to the output, and pass them on.

        Args:
            results: micro-batches with all the values known at the last stage.
            assembly: the last stage.
            count: number of samples.
            tracer: this stage's times.

        Raises:
            InputError: what was returned cannot be written.
            StageError: a function of the user's failed; the cause is chained to it.
        """
        with open_output(self._path, count) as writer:
            for index, values in results:
                with tracer.span("sink", index):
                    self._write(writer, values, assembly)
                yield index, values

    def confusion(self) -> Confusion | None:
        """What was taken for what; None without labels."""
        return self._tally.confusion() if self._tally else None

    def _write(self, writer: Writer, values: dict[str, Value], assembly: Assembly) -> None:
        output = assembly.graph.unflatten_outputs([values[n] for n in assembly.plan.outputs])
        samples: torch.Tensor = values[SAMPLES]  # type: ignore[assignment]
        extras = carried_extras(values)
        if self._tally:
            self._tally.add(class_logits(output), extras["label"])
        with blame(self._what, samples):
            rows = self._answer(output, extras)
        writer.write(samples, rows)


def check_outputs(graph: Graph, job: Job, reader: Reader | None) -> None:
    """Find out before the work whether the model returns what the job makes of it. *Local.*

    Args:
        graph: the model.
        job: its output, task, postprocess and labels count.
        reader: the input on rank 0, None elsewhere.

    Raises:
        InputError: a ``.npy`` file cannot hold it, it has no scores of classes where these are
            wanted, or a label is none of the classes.
    """
    shapes = {
        node.name: node.meta.get("val", torch.empty(0))
        for node in graph.module.graph.output_node().all_input_nodes
    }
    output = graph.unflatten_outputs([shapes[name] for name in graph.outputs])
    answers = job.writes_answers and job.resolved_task in CLASSIFICATION and not job.postprocess
    if answers or job.labels is not None:
        classes = class_logits(output).shape[1]
        if isinstance(reader, Labelled) and isinstance(classes, int):
            reader.require(classes)
    if job.postprocess is None and not answers:
        _check_tensors(named_tensors(output), job)


def _check_tensors(tensors: Mapping[str, torch.Tensor], job: Job) -> None:
    for name, tensor in tensors.items():
        if not tensor.dim():
            raise InputError(
                f"{name} of the model's output is a single number, expected a row for each sample; "
                "leave it out of what the model returns, or make rows with --postprocess"
            )
    if job.output.suffix.lower() != ".npy":
        return
    if len(tensors) != 1:
        raise InputError(
            f"the model returns {len(tensors)} tensors ({', '.join(tensors)}), a .npy file holds "
            "one; name an output that ends in .safetensors or .jsonl"
        )
    ((name, tensor),) = tensors.items()
    if tensor.dtype in _NOT_OF_NUMPY:
        raise InputError(
            f"{name} of the model's output is {tensor.dtype}, which .npy files lack; name an "
            "output that ends in .safetensors, or give --dtype float32"
        )


def _open_answer(job: Job, what: str) -> Answer:
    if job.postprocess is not None:
        function = import_named(job.postprocess, "a function that makes rows of the output")
        return answered_by(function, what)
    if not job.writes_answers:
        return as_tensors
    task = job.resolved_task
    if task in CLASSIFICATION:
        return load_classes(job).answer
    if task == "token-classification":
        return entities(load_tokenizer(job.model), load_classes(job).names)
    return fillings(load_tokenizer(job.model)) if task == "fill-mask" else as_tensors
