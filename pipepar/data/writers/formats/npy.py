"""The one tensor of the model (.npy): a row a sample."""

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

_NOT_OF_NUMPY: Final = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class NpyWriter(ArrayWriter):
    """Writes the one output of a model to ``.npy``.

    Without samples no row tells the shape and the dtype: these are then (0,) and float32.
    """

    def _header(self, first: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, int]]:
        if len(first) != 1:
            raise InputError(
                f"output {self.path}: the model returns {len(first)} values, {listed(first)}; "
                "expected exactly one for .npy. Write to a .safetensors or .jsonl file."
            )
        ((name, row),) = first.items()
        try:
            dtype = row.numpy().dtype
        except (TypeError, RuntimeError) as error:
            raise InputError(
                f"output {self.path}: {name!r} has dtype {row.dtype}, which NumPy lacks; expected "
                "one that NumPy has. Write to a .safetensors file, which keeps the dtype."
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
    if len(tensors) != 1:
        raise InputError(
            f"the model returns {len(tensors)} tensors ({', '.join(tensors)}), a .npy file holds "
            "one; name an output that ends in .safetensors or .jsonl"
        )
    ((name, tensor),) = tensors.items()
    if tensor.dtype in _NOT_OF_NUMPY:
        raise InputError(
            f"{name} of the model's output is {tensor.dtype}, which .npy files lack; name an "
            "output that ends in .safetensors, or give --dtype float32"
        )


FORMAT = OutputFormat(suffix=".npy", writer=NpyWriter, check=_check)
