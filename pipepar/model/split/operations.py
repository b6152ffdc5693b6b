"""What each node of a graph computes at given sizes: enough to compute it by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from pipepar.microbatch import TensorSpec
from pipepar.model.capture.graph import Graph, described_state, get_attribute
from pipepar.model.compat.torch_internals import FakeTensorMode
from pipepar.model.fake_tensors import fake_tensor, faked


@dataclass(frozen=True, slots=True)
class Needed:
    """A tensor that an operation is called with."""

    spec: TensorSpec
    """How it lies in memory."""
    weight: bool
    """Whether it is a tensor of the model's own."""
    requires_grad: bool
    """What its flag says; torch chooses kernels by it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a graph."""

    target: Callable[..., Any] | nn.Module
    """What is called; a module's weights are on meta."""
    args: tuple[Any, ...]
    """Positional arguments, nested as the target takes them, with `Needed` for tensors."""
    kwargs: Mapping[str, Any]
    """The same by keyword."""
    signature: str
    """Equal where the same thing is computed at the same sizes."""

    @property
    def needed(self) -> list[Needed]:
        """The tensors of its arguments, in order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Needed)]


def example_rows(graph: Graph) -> int:
    """Samples in the example: the rows of its first tensor that has any."""
    return next((tensor.shape[0] for tensor in graph.example if tensor.dim()), 1)


def operations_of(graph: Graph, rows: int) -> dict[fx.Node, Operation]:
    """What each compute node does for a micro-batch of so many samples.

    Args:
        graph: the captured model; no weight is read.
        rows: samples; other than the example's only where the graph leaves the batch free.

    Returns:
        An operation for each node, but those from the first on that needs real values to go on.
    """
    run = _DescribingRun(graph)
    with contextlib.suppress(Exception):
        # As in costs.measure: what cannot be gone through under fakes is guessed at, not timed.
        _run(run, graph, rows)
    return run.operations


def takes_rows(graph: Graph, rows: int) -> bool:
    """Whether micro-batches of so many samples can be computed, and put together again.

    Args:
        graph: the captured model.
        rows: samples.

    Returns:
        False if the graph does not hold for that size, a layer fails on it, or an output has no row
        for each sample.
    """
    if not graph.signature.holds_for([each.shape for each in _example(graph, rows)]):
        return False
    try:
        outputs = pytree.tree_leaves(_run(fx.Interpreter(graph.module), graph, rows))
    except Exception:
        return False
    tensors = [leaf for leaf in outputs if isinstance(leaf, torch.Tensor)]
    return all(tensor.dim() and len(tensor) == rows for tensor in tensors)


def _run(run: fx.Interpreter, graph: Graph, rows: int) -> Any:
    """Go through the graph with tensors that have no values."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake_tensor(tensor, mode, graph.device) for tensor in _example(graph, rows)]
    with faked(graph.module, mode, graph.device), mode, torch.no_grad():
        return run.run(*inputs)


def _example(graph: Graph, rows: int) -> list[torch.Tensor]:
    return [_resized(tensor, rows, example_rows(graph)) for tensor in graph.example]


def _resized(tensor: torch.Tensor, rows: int, found: int) -> torch.Tensor:
    if not tensor.dim() or tensor.shape[0] != found or rows == found:
        return tensor
    return tensor.new_empty((rows, *tensor.shape[1:]))


class _DescribingRun(fx.Interpreter):
    """Runs a graph node by node and notes what each is called with."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.extra_traceback = False
        self.operations: dict[fx.Node, Operation] = {}
        held = graph.module.graph.find_nodes(op="get_attr")
        own = {node: get_attribute(graph.module, str(node.target)) for node in held}
        self._grads = {
            node: value.requires_grad
            for node, value in own.items()
            if isinstance(value, torch.Tensor)
        }

    def run_node(self, n: fx.Node) -> Any:
        operation: Operation | None = None
        if n.op == "call_function":
            operation = self._operation(n, n.target, f"{n.target}")  # type: ignore[arg-type]
        elif n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            operation = self._operation(n, module, "\n".join(described_state(module)))
        with (
            FlopCounterMode(display=False)
            if n.op == "call_module"
            else contextlib.nullcontext() as counter
        ):
            result = super().run_node(n)
        if operation is not None:
            # Not every setting of a module shows in its description; this one does in its work.
            work = f" {counter.get_total_flops()}" if counter else ""
            self.operations[n] = replace(operation, signature=operation.signature + work)
        return result

    def _operation(
        self, n: fx.Node, target: Callable[..., Any] | nn.Module, name: str
    ) -> Operation:
        args: Any = fx.node.map_arg(n.args, self._described)
        kwargs: Any = fx.node.map_arg(n.kwargs, self._described)
        return Operation(target, args, kwargs, f"{name} {args} {kwargs}")

    def _described(self, node: fx.Node) -> Any:
        grad = self._grads.get(node)

        def leaf(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return Needed(TensorSpec.of(value), grad is not None, bool(grad))

        return pytree.tree_map(leaf, self.env[node])


def distinct(operations: Mapping[fx.Node, Operation]) -> list[Operation]:
    """Each different operation once, in the order of the graph."""
    first: dict[str, Operation] = {}
    for operation in operations.values():
        first.setdefault(operation.signature, operation)
    return list(first.values())
