"""Fixed sizes of a graph: fixed by the model, or only by tracing."""

from __future__ import annotations

import torch

from pipepar.model.capture.diagnosis import is_tracing_code, reason, source_line
from pipepar.model.capture.flat_call import FlatCall
from pipepar.model.capture.graph import Graph
from pipepar.model.capture.shape_candidates import DYNAMIC_DIMS, resized, unused_sizes
from pipepar.model.capture.size_limits import Restriction
from pipepar.model.compat.torch_internals import FakeTensorMode, ShapeEnv, sizes_fixed_by_tracing
from pipepar.model.fake_tensors import fake_tensor, faked, quiet


def restriction(call: FlatCall, graph: Graph, failure: Exception | None) -> Restriction | None:
    """Return the inputs with sizes that only tracing fixed, and the reason.

    The channels of a picture are fixed by the model: the model fails with any other number of
    channels. A size is fixed only by tracing if the model runs, on fake tensors, with another one.

    Args:
        call: the model and its example.
        graph: the captured graph.
        failure: the error of an earlier attempt that kept the example's sizes; None if there was
            none.

    Returns:
        The restriction; None if no size of dimension 0 or 1 was fixed by tracing and some input has
        a dynamic batch. Dimensions from 2 on are fixed and never reported. If tracing fixed no
        size, but no input has a dynamic batch, the inputs with a fixed batch are reported, because
        micro-batches need a dynamic one.
    """
    fixed = _fixed_sizes(graph)
    keys = [key for key in fixed if _runs_with_other_size(call, key, graph.device)]
    if keys:
        why = _fixing_line(graph, keys)
        if why is None:
            why = reason(call.model, failure) if failure else "tracing fixed it, at an unknown line"
    else:
        keys = [key for key in fixed if key[0] == 0 and "batch" not in graph.varies]
        why = "the model accepts only this batch size"
    names = dict.fromkeys(name for key in keys for name in fixed[key])
    return Restriction(tuple(names), why) if names else None


def _fixed_sizes(graph: Graph) -> dict[tuple[int, int], list[str]]:
    """Return the inputs of each (dimension, size) that is fixed, among dims 0 and 1."""
    found: dict[tuple[int, int], list[str]] = {}
    for leaf in graph.signature.tensors:
        for dim, size in enumerate((leaf.sizes or ())[:DYNAMIC_DIMS]):
            if isinstance(size, int):
                found.setdefault((dim, size), []).append(leaf.name)
    return found


def _runs_with_other_size(call: FlatCall, key: tuple[int, int], device: torch.device) -> bool:
    """Whether the model runs with another size.

    The other size is in place of `size` in dimension `dim` of every input that has it. Tries an
    unused size of at least 11, usually below a model's maximum (a table of positions), and twice
    the size, for models with a minimum (convolutions without padding).
    """
    dim, size = key
    small = unused_sizes(tuple(call.tensors.values()), call.model)[key]
    return any(_runs(call, dim, size, other, device) for other in (small, 2 * size))


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


def _fixing_line(graph: Graph, fixed: list[tuple[int, int]]) -> str | None:
    """Return where tracing fixed one of these sizes, as a clause for a message; None if unknown.

    Guards are matched by size, not by dimension.
    """
    sizes = {size for _, size in fixed}
    for node in graph.module.graph.find_nodes(op="placeholder"):
        env = node.meta["val"].fake_mode.shape_env
        for size, frame in sizes_fixed_by_tracing(env) if env else ():
            if size in sizes and not is_tracing_code(frame.filename):
                return f"tracing fixed it at {source_line(frame)}"
    return None
