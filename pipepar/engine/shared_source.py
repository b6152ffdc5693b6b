"""The source of a model for all ranks: each reads its weights, or the root sends them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipepar.model.source.open_source import Source
from pipepar.model.weights.weight_source import ModuleWeights


@dataclass(frozen=True, slots=True)
class SharedSource:
    """The source of a model, and whether every rank or only the root reads its weights."""

    source: Source
    """The model and its weights; the same on every rank except for the values of the weights."""
    from_root: bool
    """Whether only the root reads the weights, and sends each rank those of its stage."""

    def check(self, is_root: bool) -> None:
        """Check the files of the weights, without reading values, if this rank has to read them.

        Weights in memory are not checked.

        Args:
            is_root: whether this rank is the root.

        Raises:
            WeightsError: a file is missing or damaged, or has a tensor that the model lacks.
        """
        if is_root or not self.from_root:
            self.source.weights.check(())

    def held(self, device: torch.device) -> float:
        """Return the bytes of this rank's weights on `device`; 0 for weights in files."""
        weights = self.source.weights
        return weights.held(device) if isinstance(weights, ModuleWeights) else 0.0
