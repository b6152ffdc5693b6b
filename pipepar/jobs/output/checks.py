"""Checks, before the work starts, that the job can make rows from the model's output."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipepar.data.readers.labels import LabelledReader
from pipepar.data.readers.reader import Reader
from pipepar.data.writers.registry import find_output_format
from pipepar.errors import InputError
from pipepar.jobs.options import Job
from pipepar.model.capture.graph import Graph
from pipepar.tasks.answers import tensors_by_name
from pipepar.tasks.classes import class_logits


def check_outputs(graph: Graph, job: Job, reader: Reader | None) -> None:
    """Refuse a model whose output does not fit the job.

    Args:
        graph: the model.
        job: its output, task, postprocess and labels are used.
        reader: the input on rank 0, None elsewhere.

    Raises:
        InputError: the task or the format of the file does not support the output, the output has
            no scores of classes although there are labels, or a label is not a class of the model.
    """
    shapes = {
        node.name: node.meta.get("val", torch.empty(0))
        for node in graph.module.graph.output_node().all_input_nodes
    }
    output = graph.unflatten_outputs([shapes[name] for name in graph.outputs])
    check = job.resolved_task.check_output if job.writes_answers and not job.postprocess else None
    if check is not None:
        check(output)
    if job.labels is not None:
        classes = class_logits(output).shape[1]
        if isinstance(reader, LabelledReader) and isinstance(classes, int):
            reader.require(classes)
    if job.postprocess is None and check is None:
        _check_tensors(tensors_by_name(output), job)


def _check_tensors(tensors: Mapping[str, torch.Tensor], job: Job) -> None:
    for name, tensor in tensors.items():
        if not tensor.dim():
            raise InputError(
                f"{name} of the model's output is a single number, expected a row for each sample; "
                "remove it from the model's output, or make rows with --postprocess"
            )
    find_output_format(job.output).check(tensors)
