"""What each node of a graph costs, counted without computing it."""

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
from pipepar.model.compat.torch_internals import FakeTensorMode, OpOverload
from pipepar.model.fake_tensors import fake_tensor, faked


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One node, at the example's sizes."""

    flops: int
    """Floating-point operations."""
    touched: int
    """Bytes of activations read and written; 0 for a view."""
    size: int
    """Bytes of the tensors it makes."""
    memory: frozenset[int]
    """Numbers of the memory that its tensors lie in; equal numbers alias."""


UNKNOWN = NodeCost(flops=0, touched=1, size=0, memory=frozenset())


def measure(graph: Graph) -> dict[fx.Node, NodeCost]:
    """Count every node's work under fake tensors.

    Args:
        graph: the captured model; no weight is read.

    Returns:
        A cost for each node. Nodes from one on that needs real values have `UNKNOWN` cost.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake_tensor(tensor, mode, graph.device) for tensor in graph.example]
    run = _CountingRun(graph.module)
    with faked(graph.module, mode, graph.device), mode, torch.no_grad():
        try:
            run.run(*inputs)
        except Exception:
            # Planning may guess where computing may not: an equal price a node is a fair guess.
            return {node: run.costs.get(node, UNKNOWN) for node in graph.module.graph.nodes}
    return run.costs


class _CountingRun(fx.Interpreter):
    """Runs a graph node by node and notes what each did."""

    def __init__(self, module: fx.GraphModule) -> None:
        # Values stay alive, so that no memory is given out twice.
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self.costs: dict[fx.Node, NodeCost] = {}
        self._formulas = _formulas(module.graph)

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False, custom_mapping=self._formulas) as counter:
            result = super().run_node(n)
        made = _tensors(result)
        read = [t for a in n.all_input_nodes if a.op != "get_attr" for t in _tensors(self.env[a])]
        memory = memory_of(made)
        is_view = not writes(n) and memory & memory_of(read)
        self.costs[n] = NodeCost(
            flops=int(counter.get_total_flops()),
            touched=0 if is_view or n.op == "placeholder" else _bytes(read) + _bytes(made),
            size=_bytes(made),
            memory=memory,
        )
        return result


def _formulas(graph: fx.Graph) -> dict[Any, Callable[..., int]]:
    """How to count the operations that torch's own counter takes for no work at all."""
    targets = {n.target for n in graph.nodes if isinstance(n.target, OpOverload)}
    # torch has one of that name, transformers another.
    return {t.overloadpacket: _grouped_mm for t in targets if "grouped_mm" in str(t)}


def _grouped_mm(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    """FLOPs of a mixture's experts: each row of `a` meets one of the matrices in `b`."""
    matrices = a[0] if len(a) > len(b) else 1  # then each column of `b` meets one of those in `a`
    return 2 * prod(a) * b[-1] // matrices


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
