"""The places where a stage may begin or end, and the costs of the model before each place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipepar.plan.costs import LayerCost

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class PrefixSums:
    """The costs of a model at its P places; a stage is the part between two places."""

    position: Integers
    """[P] index of the layer after each place: 0, the useful cuts, the number of layers."""
    done: Integers
    """[P] number of layers before each place that have work for any kind of device, ascending."""
    work: Mapping[str, Floats]
    """[P] work before each place, by kind of device, ascending."""
    weights: Floats
    """[P] bytes of the weights before each place, ascending."""
    crossing: Floats
    """[P] bytes that cross at each place; 0 at both ends."""
    workspace: Floats
    """[P - 1] bytes of the largest workspace of a layer between each place and the next."""
    depth: int
    """Number of micro-batches that a channel holds."""

    def memory(self, begin: int, end: int) -> Floats:
        """Return, for each place in [begin, end), the bytes of a stage from there to `end`."""
        largest: Floats = np.maximum.accumulate(self.workspace[begin:end][::-1])[::-1]
        in_flight: Floats = self.depth * (self.crossing[begin:end] + self.crossing[end])
        weights: Floats = self.weights[end] - self.weights[begin:end]
        return weights + in_flight + largest


def prefix_sums(layers: Sequence[LayerCost], kinds: Collection[str], depth: int) -> PrefixSums:
    """Return the costs of a model at its useful cuts: legal cuts with work on both sides.

    Args:
        layers: the model.
        kinds: the kinds of all devices.
        depth: number of micro-batches that a channel holds.
    """
    works = {kind: [layer.work_on(kind) for layer in layers] for kind in kinds}
    has_work = np.any(np.array(list(works.values())) > 0, axis=0)
    done = np.concatenate([[0], np.cumsum(has_work)])
    cuts = [
        position
        for position, layer in enumerate(layers)
        if layer.crossing is not None and 0 < done[position] < done[-1]
    ]
    places = np.array([0, *cuts, len(layers)])
    workspace = np.array([*(layer.workspace for layer in layers), 0.0])
    return PrefixSums(
        position=places,
        done=done[places],
        work={kind: _sums(work)[places] for kind, work in works.items()},
        weights=_sums([layer.weights for layer in layers])[places],
        crossing=np.array([0.0, *(layers[cut].crossing or 0.0 for cut in cuts), 0.0]),
        workspace=np.maximum.reduceat(workspace, places[:-1]),
        depth=depth,
    )


def _sums(values: Sequence[float]) -> Floats:
    """Return the sums of the first 0, 1, ... values."""
    return np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
