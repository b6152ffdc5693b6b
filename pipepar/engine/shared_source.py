"""A model source that all ranks use, each by itself or through the root."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipepar.model.source.open_source import Source
from pipepar.model.weights.weight_source import ModuleWeights


@dataclass(frozen=True, slots=True)
class SharedSource:
    """The source of a model, and the ranks that can read its weights."""

    source: Source
    """The model and its weights; the same on every rank except for the values of the weights."""
    from_root: bool
    """Whether only the root can read the weights and sends each rank its own."""

    def check(self, is_root: bool) -> None:
        """Check the weights if this rank has to read them.

        Args:
            is_root: whether this rank is the root.

        Raises:
            WeightsError: a file is missing or damaged.
        """
        if is_root or not self.from_root:
            self.source.weights.check(())

    def held(self, device: torch.device) -> float:
        """Return how many bytes of the weights are already in the memory of `device`."""
        weights = self.source.weights
        return weights.held(device) if isinstance(weights, ModuleWeights) else 0.0
