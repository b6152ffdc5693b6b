"""Loads weights that Keras saved into a torch model with the same layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Weights = Mapping[str, np.ndarray[Any, Any]]
"""The weights of one layer, by Keras's names such as kernel and bias."""

TORCH_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def read(path: Path) -> list[Weights]:
    """Return the weights in an .h5 file, of each layer that has any, in the model's order."""
    import h5py  # optional, needed only here

    with h5py.File(path) as file:
        group = file["model_weights"]
        found = [weights_of(group[name]) for name in group.attrs["layer_names"]]
    return [weights for weights in found if weights]


def weights_of(layer: Any) -> Weights:
    """Return the weights of one layer's group; their full names are like conv2d/kernel:0."""
    names = layer.attrs["weight_names"]
    return {name.split("/")[-1].split(":")[0]: layer[name][()] for name in names}


def load(model: nn.Module, layers: Sequence[Weights]) -> None:
    """Load the weights of Keras's layers into the layers of a torch model, in order.

    Keras flattens channels last. This function does not reorder the rows of the dense kernel after
    a flatten, so only one pixel may be left there.

    Args:
        model: its layers with parameters correspond to `layers`; modified in place.
        layers: the weights of each Keras layer that has any.

    Raises:
        ValueError: the numbers of layers differ.
        RuntimeError: a weight has another shape.
    """
    modules = [module for module in model.modules() if list(module.parameters(recurse=False))]
    for module, weights in zip(modules, layers, strict=True):
        module.load_state_dict({TORCH_NAMES[name]: to_torch(w) for name, w in weights.items()})


def to_torch(weight: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a weight in torch's layout.

    Keras's kernels are [in, out] or [height, width, in, out], torch's [out, in] or
    [out, in, height, width]. Vectors are not changed.
    """
    if weight.ndim > 1:
        weight = np.moveaxis(weight, (-1, -2), (0, 1))
    return torch.from_numpy(np.ascontiguousarray(weight))
