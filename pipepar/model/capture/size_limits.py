"""Names of the dynamic sizes of a graph's inputs, and the message about fixed sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipepar.model.capture.signature import Signature, TensorInput

# Names of the dimensions that may be dynamic; see shape_candidates.DYNAMIC_DIMS.
_DIM_NAMES = ("batch", "length")

Varies: TypeAlias = Literal["all sizes", "batch and length", "batch", "length", "nothing"]
"""The sizes that may differ from call to call; see `varies`."""


@dataclass(frozen=True, slots=True)
class Restriction:
    """Inputs with sizes that only tracing fixed; if there are none, with a batch of fixed size."""

    inputs: tuple[str, ...]
    """Names of the inputs with such a size."""
    reason: str
    """A clause that says why the size is fixed, with the line of the model if it is known."""


def varies(leaves: Sequence[TensorInput]) -> Varies:
    """Return which of the sizes of dimensions 0 and 1 may differ from call to call.

    Args:
        leaves: tensor inputs of the graph.

    Returns:
        "batch" if dimension 0 of an input is dynamic, "length" if dimension 1 is, or both, or
        "nothing"; "all sizes" for a sequence of layers, which is not traced.
    """
    if any(leaf.sizes is None for leaf in leaves):
        return "all sizes"
    batch, length = (any(_is_dynamic(leaf, d) for leaf in leaves) for d in range(len(_DIM_NAMES)))
    if batch and length:
        return "batch and length"
    return "batch" if batch else "length" if length else "nothing"


def sentence(name: str, signature: Signature, restriction: Restriction | None) -> str | None:
    """Return a sentence for the user about the fixed sizes in a restriction.

    Args:
        name: the name of the model.
        signature: the inputs of the graph.
        restriction: the inputs with fixed sizes, if any.

    Returns:
        The sentence; None without a restriction.
    """
    if restriction is None:
        return None
    leaves = [leaf for leaf in signature.tensors if leaf.name in restriction.inputs]
    dynamic = varies(leaves)
    varying = "with fixed sizes" if dynamic == "nothing" else f"with a varying {dynamic}"
    needed = " and ".join(f"{leaf.name} must be {_shape(leaf)}" for leaf in leaves)
    return (
        f"{name} could only be captured {varying}: {needed}, because {restriction.reason}; "
        f"pad or cut the inputs to this size, or give an example of the size you need"
    )


def _is_dynamic(leaf: TensorInput, dim: int) -> bool:
    return leaf.sizes is not None and dim < leaf.rank and not isinstance(leaf.sizes[dim], int)


def _shape(leaf: TensorInput) -> str:
    """Return a shape with the names of dynamic dimensions, such as [batch, 128]."""
    sizes = enumerate(leaf.sizes or ())
    return f"[{', '.join(str(s) if isinstance(s, int) else _DIM_NAMES[d] for d, s in sizes)}]"
