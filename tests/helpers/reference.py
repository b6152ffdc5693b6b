"""The expected results of a pipeline.

If all ranks compute on the same kind of device, they are the results of the unsplit model. If some
compute on GPUs and some on hosts, the stages run one after another in this process, each on a
device of its rank's kind.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pipepar.engine.stage import Stage
from pipepar.model.source.open_source import from_module
from pipepar.pipeline import Pipeline


def reference(model: nn.Module, pipe: Pipeline) -> Callable[..., Any]:
    """Return a function that computes one micro-batch; arguments and results are on the host."""
    devices = [device_of(kind) for kind in pipe._assembly.run.device_context.devices.by_rank]
    whole = _whole(model, devices[0]) if len(set(devices)) == 1 else _staged(model, pipe, devices)

    def compute(*args: Any) -> Any:
        with torch.no_grad():
            return _moved(whole(*_moved(args, devices[0])), torch.device("cpu"))

    return compute


def device_of(kind: str) -> torch.device:
    """Return the device that computes the same numbers as a rank of this kind, "cpu" or "cuda"."""
    real = kind == "cuda" and torch.cuda.is_available()  # a stand-in for a GPU computes on the host
    return torch.device("cuda" if real else "cpu")


def _whole(model: nn.Module, device: torch.device) -> Callable[..., Any]:
    return copy.deepcopy(model).to(device)


def _staged(
    model: nn.Module, pipe: Pipeline, devices: Sequence[torch.device]
) -> Callable[..., Any]:
    graph, plan = pipe._assembly.graph, pipe._assembly.plan
    weights = from_module(model).weights
    stages = [Stage.load(graph, plan, k, weights, device) for k, device in enumerate(devices)]

    def compute(*args: Any) -> Any:
        values = dict(zip(graph.inputs, graph.flatten_inputs(args), strict=True))
        for stage, device in zip(stages, devices, strict=True):
            outputs = stage([_moved(values[name], device) for name in stage.inputs])
            values.update(zip(stage.outputs, outputs, strict=True))
        return graph.unflatten_outputs([values[name] for name in plan.outputs])

    return compute


def _moved(tree: Any, device: torch.device) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), tree)
