"""Checks of the inputs for a graph that accepts only fixed sizes, made before a run."""

from __future__ import annotations

from pipepar.errors import InputError
from pipepar.model.capture.graph import Graph


def require_batches(graph: Graph, samples: int, micro_batch: int, option: str) -> None:
    """Refuse samples that do not divide into micro-batches of the one size that the graph accepts.

    Args:
        graph: the captured model; most accept any size.
        samples: number of samples.
        micro_batch: the largest number of samples in a micro-batch.
        option: the option that sets the micro-batch, for the message.

    Raises:
        InputError: the last micro-batch, or every micro-batch, would have another size.
    """
    size = fixed_batch(graph)
    if size is None or samples == 0:
        return
    rows = min(micro_batch, samples)
    if rows != size:
        raise InputError(
            f"the model was captured for micro-batches of {size} samples only, found {samples} "
            f"samples in micro-batches of {micro_batch}; give {option}={size} and at least {size} "
            f"samples, or an example with {rows}"
        )
    if samples % size:
        fitting = max(n for n in range(1, size + 1) if samples % n == 0)
        raise InputError(
            f"the model was captured for micro-batches of {size} samples only, found {samples} "
            f"samples, which leave a micro-batch of {samples % size}; give {option}={fitting}, "
            f"which divides them, or add samples"
        )


def require_alone(graph: Graph) -> None:
    """Refuse a model that does not accept micro-batches of one sample, which --on-error skip needs.

    Args:
        graph: the captured model.

    Raises:
        InputError: the model accepts only micro-batches of another size.
    """
    size = fixed_batch(graph)
    if size not in (None, 1):
        raise InputError(
            f"--on-error skip tries the samples of a micro-batch that failed one by one, but the "
            f"model was captured for micro-batches of {size} samples only; leave the option out, "
            f"or give --micro-batch 1"
        )


def fixed_batch(graph: Graph) -> int | None:
    """Return the only size of micro-batch that a graph accepts; None for most models."""
    return _fixed(graph, 0)


def require_one_length(graph: Graph) -> None:
    """Refuse a model that accepts texts of one length only; called if lengths may differ.

    Args:
        graph: the captured model.

    Raises:
        InputError: the length of its inputs is fixed.
    """
    length = _fixed(graph, 1)
    if length is not None:
        raise InputError(
            f"the model was captured for texts of {length} tokens only, but texts are padded to "
            f"the longest text of their micro-batch; give --padding max_length, and --max-length "
            f"if the limit of the tokenizer is too long"
        )


def _fixed(graph: Graph, dim: int) -> int | None:
    """Return the size of the first input with a fixed size in a dimension; None without one."""
    sizes = (leaf.sizes[dim] for leaf in graph.signature.tensors if leaf.sizes and leaf.rank > dim)
    return next((size for size in sizes if isinstance(size, int)), None)
