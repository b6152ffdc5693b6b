"""A model's source, as the ranks share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipepar.model.source.open_source import Source
from pipepar.model.weights.weight_source import ModuleWeights


@dataclass(frozen=True, slots=True)
class SharedSource:
    """Where the ranks get a model and its weights."""

    source: Source
    """The same on every rank, but for the values of its weights."""
    from_root: bool
    """Whether only rank 0's weights can be read, and it sends the others theirs."""

    def check(self, is_root: bool) -> None:
        """Refuse weights that a rank has to read and that are not there.

        Args:
            is_root: whether the rank is the root.

        Raises:
            WeightsError: a file is missing or damaged.
        """
        if is_root or not self.from_root:
            self.source.weights.check(())

    def held(self, device: torch.device) -> float:
        """Bytes of the weights that are in the memory of a device already."""
        weights = self.source.weights
        return weights.held(device) if isinstance(weights, ModuleWeights) else 0.0
