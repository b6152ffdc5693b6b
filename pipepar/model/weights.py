"""One stage's tensors, and no others."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipepar.errors import WeightsError


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """What a graph expects of one of its parameters or persistent buffers."""

    name: str
    """The model's own name for it, such as encoder.layer.0.output.dense.weight."""
    aliases: tuple[str, ...]
    """Other names of the same tensor, where the model ties weights."""
    shape: tuple[int, ...]
    """Sizes of its dimensions."""
    dtype: torch.dtype
    """Element type that the model computes with."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Weights(Protocol):
    """A place where weights lie."""

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names and shapes without reading any values. *Local.*

        Args:
            specs: the tensors that will be read.

        Raises:
            WeightsError: a tensor is missing or does not fit.
        """

    def read(self, specs: Sequence[WeightSpec]) -> dict[str, torch.Tensor]:
        """Read the named tensors and nothing else. *Local.*

        Args:
            specs: the tensors to read.

        Returns:
            Tensors by `WeightSpec.name`, on the device where they lie.

        Raises:
            WeightsError: a tensor is missing or does not fit, or a file is damaged.
        """


class ModuleWeights:
    """The weights of a module that exists already; they are shared, not copied.

    Args:
        module: the module that holds the values.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tensors: dict[str, torch.Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        self._holder = type(module).__name__

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names, shapes and dtypes; see `Weights.check`. *Local.*"""
        for spec in specs:
            self._find(spec)

    def read(self, specs: Sequence[WeightSpec]) -> dict[str, torch.Tensor]:
        """The module's own tensors, detached; see `Weights.read`. *Local.*"""
        return {spec.name: self._find(spec).detach() for spec in specs}

    def _find(self, spec: WeightSpec) -> torch.Tensor:
        tensor = self._tensors.get(spec.name)
        if tensor is None:
            raise _missing(spec.name, f"the module {self._holder}", self._tensors)
        if tensor.is_meta:
            raise WeightsError(
                f"{spec.name} of {self._holder} is on the meta device and has no values; "
                f"give a module with values, or its factory and a safetensors file"
            )
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise WeightsError(
                f"{spec.name} of {self._holder} is {tuple(tensor.shape)} {tensor.dtype}, expected "
                f"{spec.shape} {spec.dtype}; do not change the module after it was captured"
            )
        return tensor


@dataclass(frozen=True, slots=True)
class Naming:
    """How a model's names become the names in a checkpoint."""

    wrapper: str = ""
    """Prefix that a task's wrapper puts before the model's own names, with its dot."""
    base: str = ""
    """The class's `base_model_prefix`; a checkpoint may have it or lack it."""

    def candidates(self, name: str) -> Iterator[str]:
        """Names under which a checkpoint may hold a tensor, likeliest first. *Local.*

        Args:
            name: the model's name for it.

        Yields:
            The names to try; some may repeat.
        """
        own = name.removeprefix(self.wrapper)
        spellings = [own]
        if self.base:
            spellings += [f"{self.base}.{own}", own.removeprefix(f"{self.base}.")]
        yield from spellings
        for spelling in spellings:
            yield _before_torch_named_it(spelling)


def _before_torch_named_it(name: str) -> str:
    """Checkpoints converted from TensorFlow call a layer norm's weight gamma, its bias beta."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


class SafetensorsWeights:
    """The weights in one safetensors file, or in the shards that an index names.

    Args:
        path: a .safetensors file, or a .safetensors.index.json.
        naming: how the model's names become the file's.
        cast: whether a tensor of another floating dtype is cast to the model's, as
            transformers does; otherwise that is an error.

    Raises:
        WeightsError: a file is missing or damaged.
    """

    def __init__(self, path: Path, naming: Naming | None = None, cast: bool = False) -> None:
        self._path = path
        self._naming = naming or Naming()
        self._cast = cast
        self._file_of = _index(path)

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names, shapes and dtypes from the headers; see `Weights.check`. *Local.*"""
        for file, stored in self._by_file(specs).items():
            with _open(file) as content:
                for spec, name in stored:
                    self._check_header(spec, name, file, content)

    def read(self, specs: Sequence[WeightSpec]) -> dict[str, torch.Tensor]:
        """Read from the files, each opened once; see `Weights.read`. *Local.*"""
        tensors: dict[str, torch.Tensor] = {}
        for file, stored in self._by_file(specs).items():
            with _open(file) as content:
                for spec, name in stored:
                    self._check_header(spec, name, file, content)
                    # The file's view is unaligned, which changes what CPU kernels compute.
                    tensors[spec.name] = content.get_tensor(name).clone().to(spec.dtype)
        return tensors

    def floating_dtype(self) -> torch.dtype | None:
        """Element type of the first floating-point tensor, by name. *Local.*

        Returns:
            The dtype; None if there is no such tensor.
        """
        for file in sorted(set(self._file_of.values())):
            with _open(file) as content:
                for name in content.keys():  # noqa: SIM118 - not a dictionary
                    dtype = _DTYPES.get(content.get_slice(name).get_dtype())
                    if dtype is not None and dtype.is_floating_point:
                        return dtype
        return None

    def _by_file(self, specs: Iterable[WeightSpec]) -> dict[Path, list[tuple[WeightSpec, str]]]:
        found: dict[Path, list[tuple[WeightSpec, str]]] = {}
        for spec in specs:
            name = self._stored_name(spec)
            found.setdefault(self._file_of[name], []).append((spec, name))
        return found

    def _stored_name(self, spec: WeightSpec) -> str:
        for name in (spec.name, *spec.aliases):
            for candidate in self._naming.candidates(name):
                if candidate in self._file_of:
                    return candidate
        own = next(self._naming.candidates(spec.name))
        raise _missing(own, str(self._path), self._file_of)

    def _check_header(self, spec: WeightSpec, name: str, file: Path, content: Any) -> None:
        header = content.get_slice(name)
        shape, dtype = tuple(header.get_shape()), _DTYPES.get(header.get_dtype())
        if shape != spec.shape:
            raise WeightsError(
                f"{name} in {file} has shape {shape}, expected {spec.shape}; "
                f"use the checkpoint that belongs to this model's configuration"
            )
        castable = self._cast and dtype is not None and dtype.is_floating_point
        if dtype != spec.dtype and not (castable and spec.dtype.is_floating_point):
            raise WeightsError(
                f"{name} in {file} has dtype {header.get_dtype()}, expected {spec.dtype}; build "
                f"the model in the checkpoint's dtype, or convert the checkpoint"
            )


def _index(path: Path) -> dict[str, Path]:
    """File of every stored tensor."""
    if not path.is_file():
        raise WeightsError(f"no weights at {path}, expected a safetensors file; check the path")
    if path.suffix == ".json":
        return _sharded(path)
    with _open(path) as content:
        return dict.fromkeys(content.keys(), path)


def _sharded(path: Path) -> dict[str, Path]:
    try:
        shards = json.loads(path.read_text())["weight_map"].items()
        index = {str(name): path.parent / str(file) for name, file in shards}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"{path} is no index of safetensors files ({type(error).__name__}: {error}), expected "
            f"an object with a weight_map; copy it again from its source"
        ) from error
    for file in sorted(set(index.values())):
        if not file.is_file():
            raise WeightsError(f"{path} names {file}, which does not exist; copy that shard too")
    return index


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """`safe_open` whose errors name the file."""
    try:
        with safe_open(file, framework="pt", device="cpu") as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} cannot be read as safetensors: {error}; it may be truncated: compare its "
            f"size with its source and copy it again"
        ) from error


def _missing(name: str, place: str, present: Iterable[str]) -> WeightsError:
    close = difflib.get_close_matches(name, list(present), n=3)
    hint = f"close names there: {', '.join(close)}" if close else "no name there is close"
    return WeightsError(
        f"no tensor {name} in {place} ({hint}); "
        f"use the checkpoint that belongs to this model's configuration"
    )


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
