"""What a pipeline is to return: the unsplit model's own numbers, where ranks compute alike.

Where some compute on GPUs and some on hosts there is no such model: then its stages, one after the
other in this process, each on a device of its rank's kind.
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
    """Computes one micro-batch; arguments and results lie on the host."""
    places = [place(kind) for kind in pipe._assembly.run.device_context.devices.by_rank]
    whole = _alike(model, places[0]) if len(set(places)) == 1 else _in_a_row(model, pipe, places)

    def compute(*args: Any) -> Any:
        with torch.no_grad():
            return _moved(whole(*_moved(args, places[0])), torch.device("cpu"))

    return compute


def place(kind: str) -> torch.device:
    """Where a rank of that kind, "cpu" or "cuda", computes what is to be the same."""
    real = kind == "cuda" and torch.cuda.is_available()  # else a stand-in computes on the host
    return torch.device("cuda" if real else "cpu")


def _alike(model: nn.Module, place: torch.device) -> Callable[..., Any]:
    return copy.deepcopy(model).to(place)


def _in_a_row(
    model: nn.Module, pipe: Pipeline, places: Sequence[torch.device]
) -> Callable[..., Any]:
    graph, plan = pipe._assembly.graph, pipe._assembly.plan
    weights = from_module(model).weights
    stages = [Stage.load(graph, plan, k, weights, place) for k, place in enumerate(places)]

    def compute(*args: Any) -> Any:
        values = dict(zip(graph.inputs, graph.flatten_inputs(args), strict=True))
        for stage, place in zip(stages, places, strict=True):
            outputs = stage([_moved(values[name], place) for name in stage.inputs])
            values.update(zip(stage.outputs, outputs, strict=True))
        return graph.unflatten_outputs([values[name] for name in plan.outputs])

    return compute


def _moved(tree: Any, place: torch.device) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(place), tree)
