"""Which sizes a graph leaves free, which it fixed though the model would not, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipepar.model.capture.signature import Signature, TensorInput

# What the free dimensions are called; see shape_candidates.FREE_DIMS.
_WORDS = ("batch", "length")

Varies: TypeAlias = Literal["all sizes", "batch and length", "batch", "length", "nothing"]


@dataclass(frozen=True, slots=True)
class Restriction:
    """Sizes that the example fixed, though the model itself takes others or has to."""

    inputs: tuple[str, ...]
    """The inputs concerned, by name."""
    reason: str
    """Why: the model's own line where that is known."""


def varies(leaves: Sequence[TensorInput]) -> Varies:
    """The sizes that may differ from call to call.

    Args:
        leaves: what the graph requires of each of its tensors.

    Returns:
        "batch" if dimension 0 of an input is free, "length" if dimension 1 is; "all sizes" where
        nothing was traced and the layers themselves decide.
    """
    if any(leaf.sizes is None for leaf in leaves):
        return "all sizes"
    batch, length = (any(_is_free(leaf, dim) for leaf in leaves) for dim in range(len(_WORDS)))
    if batch and length:
        return "batch and length"
    return "batch" if batch else "length" if length else "nothing"


def sentence(name: str, signature: Signature, restriction: Restriction | None) -> str | None:
    """What to tell the user about a graph that holds for fewer sizes than the model.

    Args:
        name: what to call the model.
        signature: what the graph requires.
        restriction: the sizes that were fixed, if any.

    Returns:
        One sentence; None where there is nothing to tell.
    """
    if restriction is None:
        return None
    leaves = [leaf for leaf in signature.tensors if leaf.name in restriction.inputs]
    free = varies(leaves)
    varying = "with fixed sizes" if free == "nothing" else f"with a varying {free}"
    needed = " and ".join(f"{leaf.name} must be {_words(leaf)}" for leaf in leaves)
    return (
        f"{name} could only be captured {varying}: {needed}, because {restriction.reason}; "
        f"pad or cut the inputs to that, or give an example of the sizes you need"
    )


def _is_free(leaf: TensorInput, dim: int) -> bool:
    return leaf.sizes is not None and dim < leaf.rank and not isinstance(leaf.sizes[dim], int)


def _words(leaf: TensorInput) -> str:
    """A shape with words for free sizes, such as [batch, 128]."""
    sizes = leaf.sizes or ()
    return (
        f"[{', '.join(str(s) if isinstance(s, int) else _WORDS[d] for d, s in enumerate(sizes))}]"
    )
