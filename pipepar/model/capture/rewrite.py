"""Changes to an exported graph: inlined regions, no asserts, no writes into inputs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from pipepar.errors import CaptureError
from pipepar.model.aliases import alias_groups, memory_of, writes

aten = torch.ops.aten
higher_order = torch.ops.higher_order

# The signature checks the same before the first micro-batch.
_ASSERTS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}


def inline_regions(module: fx.GraphModule) -> None:
    """Replace regions without effect on inference by the nodes inside them.

    torch.export makes one opaque node of each block under autocast(enabled=False), as in rotary
    embeddings, and of each block that switches gradients. Enabled autocast changes results, so its
    regions stay.

    Args:
        module: the exported module; modified in place.
    """
    regions = [node for node in module.graph.nodes if _region(node) is not None]
    for node in regions:
        _inline(module, node)
    if regions:
        inline_regions(module)  # the inlined nodes may be regions


def _region(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
    """Return the body and the arguments of a region to inline; None for other nodes."""
    if node.target is higher_order.wrap_with_set_grad_enabled:
        body, arguments = node.args[1], node.args[2:]
    elif node.target is higher_order.wrap_with_autocast and not node.args[2]:
        body, arguments = node.args[4], node.args[5:]
    else:
        return None
    return (body, arguments) if isinstance(body, fx.Node) else None


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    body, arguments = _region(node) or (node, ())
    inner = module.get_submodule(str(body.target))
    if not isinstance(inner, fx.GraphModule):
        raise CaptureError(
            f"the region {node.name} contains a {type(inner).__name__}, expected a graph; report it"
        )
    values: dict[fx.Node, Any] = dict(
        zip(inner.graph.find_nodes(op="placeholder"), arguments, strict=True)
    )
    with module.graph.inserting_before(node):
        for held in inner.graph.find_nodes(op="get_attr"):
            name = f"{body.target}_{held.target}".replace(".", "_")
            setattr(module, name, getattr(inner, str(held.target)))
            values[held] = module.graph.get_attr(name)
        result = module.graph.graph_copy(inner.graph, values)
    for user in list(node.users):
        if user.target is not operator.getitem or not isinstance(result, (tuple, list)):
            raise CaptureError(
                f"{user.name} uses the whole result of the region {node.name}, expected one "
                f"element of it; report it"
            )
        user.replace_all_uses_with(result[int(str(user.args[1]))])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def drop_asserts(graph: fx.Graph) -> None:
    """Remove the checks that torch.export adds, and all nodes without a user.

    Args:
        graph: modified in place.
    """
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _ASSERTS:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def protect_inputs(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Make in-place operations write into copies of the inputs instead of the caller's tensors.

    Args:
        graph: modified in place.

    Returns:
        The copy of each input that is written into.

    Raises:
        CaptureError: the model writes into a parameter or a buffer, so its result would depend on
            the order of the micro-batches.
    """
    memory = {node: memory_of(node.meta.get("val")) for node in graph.nodes}
    group = alias_groups(graph.nodes, memory)
    written = {group[argument]: node for node in graph.nodes for argument in writes(node)}
    copies: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if group[node] not in written:
            continue
        if node.op == "get_attr":
            raise CaptureError(
                f"{written[group[node]].name} writes into {node.target} while it computes, "
                f"expected parameters and buffers that do not change; call module.eval(), switch "
                f"off the update, or pass the tensor as an input"
            )
        if node.op == "placeholder" and node.users:
            copies[node] = _use_copy(graph, node)
    return copies


def _use_copy(graph: fx.Graph, node: fx.Node) -> fx.Node:
    first = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
    with graph.inserting_before(first):
        copy = graph.call_function(aten.clone.default, (node,))
    copy.meta = dict(node.meta)
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
    return copy
