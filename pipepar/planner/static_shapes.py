"""A graph that holds for fixed sizes only: what does not have them is refused before the work."""

from __future__ import annotations

from pipepar.errors import InputError
from pipepar.model.capture.graph import Graph


def require_batches(graph: Graph, samples: int, micro_batch: int, option: str) -> None:
    """Refuse samples that cannot all travel in micro-batches of the one size that fits.

    Args:
        graph: the captured model; most leave the batch free.
        samples: how many there are.
        micro_batch: how many travel together.
        option: what the user sets that by, for the message.

    Raises:
        InputError: the last micro-batch, or every one, would be of another size.
    """
    size = fixed_batch(graph)
    if size is None or samples == 0:
        return
    if min(micro_batch, samples) != size:
        raise InputError(
            f"the model was captured for micro-batches of {size} samples only, found {samples} "
            f"samples in micro-batches of {micro_batch}; give {option}={size}, or an example of "
            f"{micro_batch}"
        )
    if samples % size:
        fitting = max(n for n in range(1, size + 1) if samples % n == 0)
        raise InputError(
            f"the model was captured for micro-batches of {size} samples only, found {samples} "
            f"samples, which leave one of {samples % size}; give {option}={fitting}, which divides "
            f"them, or add samples"
        )


def require_alone(graph: Graph) -> None:
    """Refuse a model that cannot take samples one by one, as --on-error skip does.

    Args:
        graph: the captured model.

    Raises:
        InputError: it was captured for micro-batches of another size only.
    """
    size = fixed_batch(graph)
    if size not in (None, 1):
        raise InputError(
            f"--on-error skip tries the samples of a micro-batch that failed one by one, but the "
            f"model was captured for micro-batches of {size} samples only; leave the option out, "
            f"or give --micro-batch 1"
        )


def fixed_batch(graph: Graph) -> int | None:
    """The only number of samples that a micro-batch may have; None for most models."""
    return _fixed(graph, 0)


def require_one_length(graph: Graph) -> None:
    """Refuse texts of various lengths for a model that was captured for one.

    Args:
        graph: the captured model.

    Raises:
        InputError: the length of its inputs is fixed.
    """
    length = _fixed(graph, 1)
    if length is not None:
        raise InputError(
            f"the model was captured for texts of {length} tokens only, but texts are padded to "
            f"the longest of their micro-batch; give --padding max_length, and --max-length if the "
            f"tokenizer's own limit is too long"
        )


def _fixed(graph: Graph, dim: int) -> int | None:
    """The size that an input must have in a dimension; None if all leave it free."""
    sizes = (leaf.sizes[dim] for leaf in graph.signature.tensors if leaf.sizes and leaf.rank > dim)
    return next((size for size in sizes if isinstance(size, int)), None)
