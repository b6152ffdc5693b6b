"""Which of the sizes that a graph fixed are the model's own, and which tracing took away."""

from __future__ import annotations

import traceback

import sympy  # type: ignore[import-untyped]
import torch
from torch import nn

from pipepar.model.capture.diagnosis import of_tracing, reason, shown
from pipepar.model.capture.flat_call import FlatCall
from pipepar.model.capture.graph import Graph
from pipepar.model.capture.shape_candidates import FREE_DIMS, Fresh, resized
from pipepar.model.capture.size_limits import Restriction
from pipepar.model.compat.torch_internals import FakeTensorMode, ShapeEnv
from pipepar.model.fake_tensors import fake_tensor, faked, quiet


def restriction(call: FlatCall, graph: Graph, failure: Exception | None) -> Restriction | None:
    """Find the sizes that the graph requires and the model does not.

    The channels of a picture are the model's own: with another number of them it fails. A size is
    tracing's where the model itself runs, on tensors without memory, with another one.

    Args:
        call: the model behind a plain call.
        graph: what became of it.
        failure: why the last wider attempt failed, if one did.

    Returns:
        The restriction; None where the graph takes what the model takes. A batch that cannot vary
        is one in any case: micro-batches would need it.
    """
    fixed = _fixed(graph)
    taken = [key for key in fixed if _runs_with_another(call, key, graph.device)]
    if taken:
        why = _fixing_line(graph, taken) or _given_up(call.model, failure)
    else:
        taken = [key for key in fixed if key[0] == 0 and "batch" not in graph.varies]
        why = "the model itself takes no other"
    names = dict.fromkeys(name for key in taken for name in fixed[key])
    return Restriction(tuple(names), why) if names else None


def _fixed(graph: Graph) -> dict[tuple[int, int], list[str]]:
    """For each dimension and size that might have been free, the inputs that have it fixed."""
    found: dict[tuple[int, int], list[str]] = {}
    for leaf in graph.signature.tensors:
        for dim, size in enumerate((leaf.sizes or ())[:FREE_DIMS]):
            if isinstance(size, int):
                found.setdefault((dim, size), []).append(leaf.name)
    return found


def _runs_with_another(call: FlatCall, key: tuple[int, int], device: torch.device) -> bool:
    """Whether the model runs with another size in the place of one that several inputs share."""
    dim, size = key
    fresh = Fresh(tuple(call.tensors.values()), call.model).size(key)
    return any(_runs(call, dim, size, other, device) for other in (fresh, 2 * size))


def _runs(call: FlatCall, dim: int, size: int, other: int, device: torch.device) -> bool:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs = []
    for tensor in call.tensors.values():
        sizes = [other if (d, s) == (dim, size) else s for d, s in enumerate(tensor.shape)]
        inputs.append(fake_tensor(resized(tensor, tuple(sizes)), mode, device))
    try:
        with faked(call, mode, device), mode, torch.no_grad(), quiet():
            call(*inputs)
    except Exception:
        return False
    return True


def _given_up(module: nn.Module, failure: Exception | None) -> str:
    return reason(module, failure) if failure else "an operation of torch's own asks for it"


def _fixing_line(graph: Graph, taken: list[tuple[int, int]]) -> str | None:
    """The line at which tracing found that a size must be what it is."""
    for node in graph.module.graph.find_nodes(op="placeholder"):
        env = node.meta["val"].fake_mode.shape_env
        for guard in env.guards if env else ():
            frame = guard.sloc.framework_loc
            if isinstance(guard.expr, sympy.Eq) and isinstance(frame, traceback.FrameSummary):
                symbol, size = guard.expr.args
                asked = symbol.is_Symbol and size in {number for _, number in taken}
                if asked and not of_tracing(frame.filename):
                    return f"tracing fixes it at {shown(frame)}"
    return None
