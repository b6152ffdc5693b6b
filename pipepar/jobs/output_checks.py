"""What a model returns: refused before the work, where the job cannot make rows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from pipepar.data.readers.labels import Labelled
from pipepar.data.readers.reader import Reader
from pipepar.errors import InputError
from pipepar.jobs.options import Job
from pipepar.model.capture.graph import Graph
from pipepar.tasks.answers import named_tensors
from pipepar.tasks.classes import class_logits

_NOT_OF_NUMPY: Final = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


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
    check = job.resolved_task.check_output if job.writes_answers and not job.postprocess else None
    if check is not None:
        check(output)
    if job.labels is not None:
        classes = class_logits(output).shape[1]
        if isinstance(reader, Labelled) and isinstance(classes, int):
            reader.require(classes)
    if job.postprocess is None and check is None:
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
