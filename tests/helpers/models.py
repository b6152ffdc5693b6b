"""Small models of every kind that a pipeline meets, and how to run one in stages."""

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
    """Adds a table of 16 positions."""

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
    """Down and up again, with skips across, as in a U-Net."""

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
    """Residual blocks that add and rectify in place."""

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
    """A dict, None and numbers in; a dict with None, a constant and one tensor twice out."""

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
    """Needs its input's sizes again at the end."""

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
    """Its middle computes from weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> Any:
        return torch.relu(x) + (self.first @ self.second).sum()


def stages_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], count: int
) -> tuple[Graph, Plan, list[Stage]]:
    """The graph, the plan and the loaded stages of a module."""
    source = from_module(module)
    graph = capture(source.module, args, kwargs)
    plan = make_plan(graph, count)
    stages = [Stage.load(graph, plan, i, source.weights) for i in range(count)]
    return graph, plan, stages


def plan_of(graph: Graph, cuts: Sequence[int]) -> Plan:
    """A plan with these cuts and no others."""
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
    """Run all stages in one process; each sees only what the plan's edges bring it: copies."""
    given = dict(zip(graph.inputs, graph.flatten_inputs(args, kwargs or {}), strict=True))
    held: list[dict[str, Any]] = [{} for _ in stages]
    held[0].update(given)
    for stage in stages:
        mine = held[stage.index]
        made = stage(tuple(mine[name] for name in stage.inputs))
        mine.update(zip(stage.outputs, made, strict=True))
        for (source, target), names in plan.edges.items():
            if source == stage.index:
                held[target].update({name: _sent(mine[name]) for name in names})
    return graph.unflatten_outputs([held[-1][name] for name in plan.outputs])


def _sent(value: Any) -> Any:
    """What arrives: memory of its own, with the strides of what was sent."""
    if not isinstance(value, torch.Tensor):
        return value
    arrived = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    core(arrived).copy_(core(value))
    return arrived


def six_layers() -> nn.Module:
    """Equal layers, [b, 8] to [b, 8], the same in every process."""
    torch.manual_seed(5)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))).eval()


class Encoder(nn.Module):
    """Attention, a skip over everything, dict in and dict out."""

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
