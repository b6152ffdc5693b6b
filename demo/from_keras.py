"""Weights that Keras saved, for a torch model of the same layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Weights = Mapping[str, np.ndarray[Any, Any]]
"""The weights of one layer by Keras's names, such as kernel and bias."""

TORCH_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def read(path: Path) -> list[Weights]:
    """Read an .h5 file: the weights of each layer that has any, in the model's order."""
    import h5py  # only here, so that the rest can be used without it

    with h5py.File(path) as file:
        group = file["model_weights"]
        found = [weights_of(group[name]) for name in group.attrs["layer_names"]]
    return [weights for weights in found if weights]


def weights_of(layer: Any) -> Weights:
    """Read the weights of one layer's group; their full names are like conv2d/kernel:0."""
    names = layer.attrs["weight_names"]
    return {name.split("/")[-1].split(":")[0]: layer[name][()] for name in names}


def load(model: nn.Module, layers: Sequence[Weights]) -> None:
    """Give the layers of a torch model, in their order, the weights of Keras's layers.

    Keras flattens channels last: where more than one pixel is left, the rows of the dense kernel
    that follows would need another order, which they are not given here.
    """
    modules = [module for module in model.modules() if list(module.parameters(recurse=False))]
    for module, weights in zip(modules, layers, strict=True):
        module.load_state_dict({TORCH_NAMES[name]: laid_out(w) for name, w in weights.items()})


def laid_out(weight: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a weight as torch lays it out.

    A kernel of Keras ends in its inputs and outputs, [in, out] or [height, width, in, out]; torch's
    begins with them, [out, in] or [out, in, height, width]. A vector stays as it is.
    """
    if weight.ndim > 1:
        weight = np.moveaxis(weight, (-1, -2), (0, 1))
    return torch.from_numpy(np.ascontiguousarray(weight))
