"""The output of a model with a single output tensor (.npy): a row per sample."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from pipepar.data.writers.array_writer import ArrayWriter
from pipepar.data.writers.output_format import OutputFormat
from pipepar.data.writers.row_writer import listed
from pipepar.errors import InputError

_UNSUPPORTED: Final = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class NpyWriter(ArrayWriter):
    """Writes the output of a model that has a single output tensor to ``.npy``.

    Without samples the shape and dtype of a row are unknown: the array is float32 (0,).
    """

    def _header(self, templates: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, int]]:
        if len(templates) != 1:
            raise InputError(
                f"output {self.path}: the model returns {len(templates)} values, "
                f"{listed(templates)}; expected exactly one for .npy. Write to a .safetensors or "
                ".jsonl file."
            )
        ((name, row),) = templates.items()
        try:
            dtype = row.numpy().dtype
        except (TypeError, RuntimeError) as error:
            raise InputError(
                f"output {self.path}: {name!r} has dtype {row.dtype}, which NumPy lacks; expected "
                "a dtype of NumPy. Write to a .safetensors file, which keeps the dtype."
            ) from error
        header = _npy_header(dtype, (self.count, *row.shape[1:]))
        return header, {name: len(header)}

    def _empty(self) -> bytes:
        return _npy_header(np.dtype(np.float32), (0,))


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def _check(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse several tensors, and a dtype that the format cannot store."""
    if len(tensors) != 1:
        raise InputError(
            f"the model returns {len(tensors)} tensors ({', '.join(tensors)}), expected one for "
            "a .npy file; name an output that ends in .safetensors or .jsonl"
        )
    ((name, tensor),) = tensors.items()
    if tensor.dtype in _UNSUPPORTED:
        raise InputError(
            f"{name} of the model's output is {tensor.dtype}, expected a dtype that .npy files "
            "support; name an output that ends in .safetensors, or give --dtype float32"
        )


FORMAT = OutputFormat(suffix=".npy", writer=NpyWriter, check=_check)
