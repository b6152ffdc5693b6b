"""Operations of a graph at given sizes, described so that each can be timed by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pipepar.microbatch import TensorSpec
from pipepar.model.capture.graph import Graph, described_state, get_attribute
from pipepar.model.fake_tensors import fake_tensor, faked


@dataclass(frozen=True, slots=True)
class Needed:
    """A tensor argument of an operation."""

    spec: TensorSpec
    """Dtype, shape and strides."""
    weight: bool
    """Whether it is a parameter, a buffer or a constant of the model."""
    requires_grad: bool
    """Its requires_grad, by which torch selects kernels."""


@dataclass(frozen=True, slots=True)
class Operation:
    """The call of one compute node."""

    target: Callable[..., Any] | nn.Module
    """The function or module that is called; a module's weights are on meta."""
    args: tuple[Any, ...]
    """Positional arguments, with `Needed` instead of tensors."""
    kwargs: Mapping[str, Any]
    """Keyword arguments, with `Needed` instead of tensors."""
    signature: str
    """Description that is equal for equal targets with arguments of equal layouts."""

    @property
    def needed(self) -> list[Needed]:
        """Tensors among the arguments, in order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Needed)]


def example_rows(graph: Graph) -> int:
    """Return the number of samples in the example.

    Args:
        graph: the captured model.

    Returns:
        The size of dimension 0 of the first tensor that has dimensions; 1 if there is none.
    """
    return next((tensor.shape[0] for tensor in graph.example if tensor.dim()), 1)


def operations_of(graph: Graph, rows: int) -> dict[fx.Node, Operation]:
    """Return the operation of each compute node for a micro-batch of `rows` samples.

    Args:
        graph: the captured model.
        rows: number of samples; must be the example's if the batch is not dynamic.

    Returns:
        The operations, up to the first node that needs values.
    """
    run = _DescribingRun(graph)
    with contextlib.suppress(Exception):
        # As in node_costs.measure: nodes that do not run on fake tensors have no operation.
        _run(run, graph, rows)
    return run.operations


def accepts_rows(graph: Graph, rows: int) -> bool:
    """Whether micro-batches of `rows` samples can be computed and their results merged.

    Args:
        graph: the captured model.
        rows: number of samples.

    Returns:
        False if the graph or a layer does not accept that size, or if an output does not have one
        row for each sample.
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
    """Run the graph on fake tensors."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake_tensor(tensor, mode, graph.device) for tensor in _example(graph, rows)]
    with faked(graph.module, mode, graph.device), mode, torch.no_grad():
        return run.run(*inputs)


def _example(graph: Graph, rows: int) -> list[torch.Tensor]:
    return [_resized(tensor, rows, example_rows(graph)) for tensor in graph.example]


def _resized(tensor: torch.Tensor, rows: int, example: int) -> torch.Tensor:
    if not tensor.dim() or tensor.shape[0] != example or rows == example:
        return tensor
    return tensor.new_empty((rows, *tensor.shape[1:]))


class _DescribingRun(fx.Interpreter):
    """Runs a graph and records the operation of each node."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.extra_traceback = False
        self.operations: dict[fx.Node, Operation] = {}
        nodes = graph.module.graph.find_nodes(op="get_attr")
        state = {node: get_attribute(graph.module, str(node.target)) for node in nodes}
        self._requires_grad = {
            node: value.requires_grad
            for node, value in state.items()
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
            # A module's description may lack a setting, so its FLOPs are added.
            flops = f" {counter.get_total_flops()}" if counter else ""
            self.operations[n] = replace(operation, signature=operation.signature + flops)
        return result

    def _operation(
        self, n: fx.Node, target: Callable[..., Any] | nn.Module, name: str
    ) -> Operation:
        args: Any = fx.node.map_arg(n.args, self._described)
        kwargs: Any = fx.node.map_arg(n.kwargs, self._described)
        return Operation(target, args, kwargs, f"{name} {args} {kwargs}")

    def _described(self, node: fx.Node) -> Any:
        requires_grad = self._requires_grad.get(node)  # None for activations

        def leaf(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return Needed(TensorSpec.of(value), requires_grad is not None, bool(requires_grad))

        return pytree.tree_map(leaf, self.env[node])


def distinct(operations: Mapping[fx.Node, Operation]) -> list[Operation]:
    """Return the operations without repetitions.

    Args:
        operations: the operation of each node.

    Returns:
        The first operation with each signature, in the order of the graph.
    """
    first: dict[str, Operation] = {}
    for operation in operations.values():
        first.setdefault(operation.signature, operation)
    return list(first.values())
