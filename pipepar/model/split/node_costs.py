"""Cost of each node of a graph, counted on fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from pipepar.model.aliases import memory_of, writes
from pipepar.model.capture.graph import Graph
from pipepar.model.compat.torch_internals import CPU_ATTENTION, FakeTensorMode, OpOverload
from pipepar.model.fake_tensors import fake_tensor, faked


@dataclass(frozen=True, slots=True)
class NodeCost:
    """The cost of one node at the example's sizes."""

    flops: int
    """Floating-point operations of matrix products, convolutions and attention; 0 for others.

    torch's FlopCounterMode counts them; `measure` adds grouped products and attention on a CPU.
    """
    touched: int
    """Bytes of activations read and written, without weights; 0 for a view and an input."""
    size: int
    """Bytes of the tensors in its result."""
    memory: frozenset[int]
    """Ids of the storages of these tensors; nodes with a common id share memory."""


UNKNOWN = NodeCost(flops=0, touched=1, size=0, memory=frozenset())


def measure(graph: Graph) -> dict[fx.Node, NodeCost]:
    """Return the cost of every node, counted on fake tensors.

    Args:
        graph: the captured model.

    Returns:
        The cost of each node; `UNKNOWN` from the first node on that fails on fake tensors.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake_tensor(tensor, mode, graph.device) for tensor in graph.example]
    run = _CountingRun(graph.module)
    with faked(graph.module, mode, graph.device), mode, torch.no_grad():
        try:
            run.run(*inputs)
        except Exception:
            # A plan needs some cost for each node; equal costs are a fair guess.
            return {node: run.costs.get(node, UNKNOWN) for node in graph.module.graph.nodes}
    return run.costs


class _CountingRun(fx.Interpreter):
    """Runs a graph and records the cost of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        # All values stay alive, so that no storage id occurs twice.
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self.costs: dict[fx.Node, NodeCost] = {}
        self._formulas = _formulas(module.graph)

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False, custom_mapping=self._formulas) as counter:
            result = super().run_node(n)
        outputs = _tensors(result)
        read = [t for a in n.all_input_nodes if a.op != "get_attr" for t in _tensors(self.env[a])]
        memory = memory_of(outputs)
        is_view = not writes(n) and memory & memory_of(read)
        self.costs[n] = NodeCost(
            flops=int(counter.get_total_flops()),
            touched=0 if is_view or n.op == "placeholder" else _bytes(read) + _bytes(outputs),
            size=_bytes(outputs),
            memory=memory,
        )
        return result


def _formulas(graph: fx.Graph) -> dict[Any, Callable[..., int]]:
    """Return FLOP formulas for operations that torch's counter does not count."""
    targets = {n.target for n in graph.nodes if isinstance(n.target, OpOverload)}
    # torch and transformers each have an operation with this name.
    grouped = {t.overloadpacket: _grouped_mm for t in targets if "grouped_mm" in str(t)}
    return {CPU_ATTENTION: _attention, **grouped}


def _attention(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Return the FLOPs of the two products of attention, for inputs of shape [B, heads, S, D]."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _grouped_mm(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Return the FLOPs of a grouped product, where one operand may be several matrices.

    Each row, or column, of the other is multiplied by one of them.
    """
    matrices = a[0] if len(a) > len(b) else 1  # the matrices are in `a` if it has more dimensions
    return 2 * prod(a) * b[-1] // matrices


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
