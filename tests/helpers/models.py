"""Small models of many kinds, and functions that run a model as stages in one process."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pipepar.comm.channels.memory import core
from pipepar.engine.stage import Stage
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import from_module
from pipepar.model.split.cut import parts
from pipepar.plan.plan import Plan, StagePlan
from pipepar.planner.plan_offline import make_plan


class DependsOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> Any:
        if x.sum() > 0:  # the user's line
            return self.layer(x)
        return x


class Positions(nn.Module):
    """Adds a table of 16 positions, so that longer inputs fail."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.table[: x.shape[1]]


class Mlp(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(6))

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Skips(nn.Module):
    """A U-Net: it reduces and restores the resolution, with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(2))
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ModuleList(nn.ConvTranspose2d(16, 8, 2, stride=2) for _ in range(2))
        self.leave = nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> Any:
        h = self.enter(x)
        skips = [h]
        for layer in self.down:
            h = torch.relu(layer(h))
            skips.append(h)
        h = torch.relu(self.middle(h))
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1))
        return self.leave(torch.cat([h, skips.pop()], 1))


class InPlace(nn.Module):
    """Residual blocks with in-place additions and ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(6))
        for norm in self.norms:
            norm.register_buffer("running_mean", torch.rand(4))
            norm.register_buffer("running_var", torch.rand(4) + 0.5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> Any:
        x.mul_(2)  # the caller's tensor
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = norm(conv(x)).relu_()
            kept = self.drop(h)  # the same memory, in eval mode
            h.add_(x)
            x = kept.relu_()
        return x


class Dicts(nn.Module):
    """Takes a dict, None and numbers. Returns a dict with None, a constant and one tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.register_buffer("shift", torch.arange(8.0), persistent=False)

    def forward(self, batch: Any, bias: Any = None, *, scale: float, flag: bool = True) -> Any:
        h = self.first(batch["x"]) + batch["offset"][:, None]
        if bias is not None:
            h = h + bias
        y = self.second(torch.relu(h)) * scale + self.shift
        return {"y": y, "aux": (h.mean(-1), None, 3), "again": y if flag else h}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> Any:
        h = self.embed(ids)
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return self.head(h)


class Sized(nn.Module):
    """Uses its input's sizes in its last operation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        batch, length, width = x.shape
        h = x.reshape(batch * length, width)
        for layer in self.layers:
            h = layer(h)
        return h.view(batch, length, width) / (length + 1)


class Constant(nn.Module):
    """Has operations that depend on weights only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> Any:
        return torch.relu(x) + (self.first @ self.second).sum()


def stages_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], count: int
) -> tuple[Graph, Plan, list[Stage]]:
    """Return the graph, the plan and the loaded stages of a module."""
    source = from_module(module)
    graph = capture(source.module, args, kwargs)
    plan = make_plan(graph, count)
    stages = [Stage.load(graph, plan, i, source.weights) for i in range(count)]
    return graph, plan, stages


def plan_of(graph: Graph, cuts: Sequence[int]) -> Plan:
    """Return a plan with exactly these cuts."""
    stages = [
        StagePlan(i, p.begin, p.end, p.inputs, p.outputs, p.weights, p.weight_bytes, 0)
        for i, p in enumerate(parts(graph, cuts))
    ]
    return Plan(graph.digest, graph.inputs, graph.outputs, tuple(stages))


def run(
    graph: Graph,
    plan: Plan,
    stages: list[Stage],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """Run all stages in one process; a stage gets copies of the values of its edges only."""
    inputs = dict(zip(graph.inputs, graph.flatten_inputs(args, kwargs or {}), strict=True))
    known: list[dict[str, Any]] = [{} for _ in stages]
    known[0].update(inputs)
    for stage in stages:
        values = known[stage.index]
        outputs = stage(tuple(values[name] for name in stage.inputs))
        values.update(zip(stage.outputs, outputs, strict=True))
        for (source, target), names in plan.edges.items():
            if source == stage.index:
                known[target].update({name: _received(values[name]) for name in names})
    return graph.unflatten_outputs([known[-1][name] for name in plan.outputs])


def _received(value: Any) -> Any:
    """Return the value as a channel delivers it: a copy with the same strides."""
    if not isinstance(value, torch.Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    core(copy).copy_(core(value))
    return copy


def six_layers() -> nn.Module:
    """Return equal layers, [b, 8] to [b, 8], with the same weights in every process."""
    torch.manual_seed(5)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))).eval()


class Encoder(nn.Module):
    """Attention and a skip over all layers; takes and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
            for _ in range(4)
        )
        self.head = nn.Linear(64, 5)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        first = hidden = self.embed(batch["ids"])
        padding = batch["mask"] == 0
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        logits = self.head(torch.cat([hidden, first], -1))
        return {"logits": logits, "hidden": (hidden, None)}


class Pair(NamedTuple):
    """A structured output."""

    left: torch.Tensor
    right: torch.Tensor


class Convolutions(nn.Module):
    """Channels-last activations and in-place writes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6))

    def forward(self, x: torch.Tensor, scale: float, bias: torch.Tensor | None = None) -> Pair:
        y = x.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            z = convolution(y).relu_()
            z += y
            y = z
        return Pair(y * scale, y[:, :, ::2] if bias is None else y + bias)
