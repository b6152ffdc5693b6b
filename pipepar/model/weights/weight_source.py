"""Sources of weights that read the tensors of one stage and no others."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import nn

from pipepar.errors import WeightsError
from pipepar.microbatch import compact
from pipepar.model.module_tensors import fingerprint_of, named_tensors, same_values
from pipepar.model.weights.checkpoint import Checkpoint, Stored, TensorFiles
from pipepar.model.weights.checkpoint_formats import open_checkpoint
from pipepar.model.weights.recipes import Naming, Recipe, Recipes


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A parameter or persistent buffer that a graph needs."""

    name: str
    """Its name in the model, such as encoder.layer.0.output.dense.weight."""
    aliases: tuple[str, ...]
    """Other names of the same tensor, if the model ties weights."""
    shape: tuple[int, ...]
    """Its sizes."""
    dtype: torch.dtype
    """The dtype that the model computes with."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


Named: TypeAlias = tuple[str, torch.Tensor]
"""A weight and its `WeightSpec.name`."""

Reading: TypeAlias = Generator[Named, None, None]
"""Weights, one at a time; a caller that does not take all of them must close it."""

Requested: TypeAlias = list[tuple[str, WeightSpec]]
"""Requested tensors, each with the one of its names that the checkpoint provides."""


class Weights(Protocol):
    """A source of weights."""

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names, shapes and dtypes without reading any values.

        Args:
            specs: the tensors that will be read.

        Raises:
            WeightsError: a tensor is missing or has the wrong shape or dtype, or the source has a
                tensor that the model lacks.
        """

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        """Read tensors and nothing else.

        Args:
            specs: the tensors to read; `check` has accepted them.

        Yields:
            Each `WeightSpec.name` and its tensor, in an order that suits the source. From files,
            tensors are on the CPU.

        Raises:
            WeightsError: a tensor is missing or has the wrong shape or dtype, or a file is damaged.
        """


class ModuleWeights:
    """The weights of an existing module; they are shared, not copied.

    Args:
        module: the module with the values.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tensors = named_tensors(module)
        self._class_name = type(module).__name__

    def held(self, device: torch.device) -> int:
        """Return the bytes of the tensors that are on a device, where a stage can share them."""
        own = {id(tensor): tensor for tensor in self._tensors.values() if tensor.device == device}
        return sum(tensor.nbytes for tensor in own.values())

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names, shapes and dtypes; see `Weights.check`."""
        for spec in specs:
            self._find(spec)

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        """Yield the module's own tensors, detached; see `Weights.read`."""
        return ((spec.name, self._find(spec).detach()) for spec in specs)

    def fingerprint(self) -> str:
        """Return a hash that identifies the values; see `module_tensors.fingerprint_of`."""
        return fingerprint_of(self._tensors)

    def _find(self, spec: WeightSpec) -> torch.Tensor:
        tensor = self._tensors.get(spec.name)
        if tensor is None:
            raise _missing(spec.name, f"the module {self._class_name}", self._tensors)
        if tensor.is_meta:
            raise WeightsError(
                f"{spec.name} of {self._class_name} is on the meta device, expected values; "
                f"give a module with values, or its factory and a safetensors file"
            )
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise WeightsError(
                f"{spec.name} of {self._class_name} is {tuple(tensor.shape)} {tensor.dtype}, "
                f"expected {spec.shape} {spec.dtype}; do not change the module after its capture"
            )
        return tensor


class StoredWeights:
    """The weights in a checkpoint, which is opened at the first use.

    Args:
        path: a file that `open_checkpoint` reads.
        naming: the mapping from the checkpoint's names to the model's.
        cast: whether a tensor of another floating dtype is cast to the model's, as transformers
            does; otherwise that is an error.
    """

    def __init__(self, path: Path, naming: Naming, cast: bool = False) -> None:
        self._path = path
        self._naming = naming
        self._cast = cast

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names, shapes and dtypes from the headers; see `Weights.check`."""
        if self._recipes.surplus:
            raise _surplus(self._recipes.surplus, self._path)
        for recipe, requested in self._in_file_order(specs):
            headers = [_meta(self._checkpoint, source) for source in recipe.sources]
            try:
                self._make(recipe, requested, headers)
            except (RuntimeError, ValueError, KeyError, IndexError) as error:
                raise WeightsError(
                    f"{requested[0][1].name} cannot be made from {_listed(recipe.sources)} in "
                    f"{self._path} ({error}); the checkpoint may lack a part: copy all of it again"
                ) from error

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        """Read in the order of the files, and open each once; see `Weights.read`."""
        with TensorFiles() as files:
            for recipe, requested in self._in_file_order(specs):
                values = self._values(files, recipe)
                for _, spec in requested:
                    self._check_ties(files, recipe, spec, values)
                yield from self._make(recipe, requested, values)

    def fingerprint(self) -> str:
        """Return a hash that identifies the checkpoint, without reading all of it.

        Returns:
            SHA-256 of the files' sizes and, for each tensor, of its name, shape, dtype and file and
            of some bytes from its middle.

        Raises:
            WeightsError: a file is damaged.
            OSError: a file cannot be read.
        """
        digest = hashlib.sha256()
        with TensorFiles() as files:
            for stored in map(self._checkpoint.locate, sorted(self._checkpoint.names)):
                size = stored.file.stat().st_size
                digest.update(f"{stored.name} {stored.file.name} {size} {stored.spec} ".encode())
                digest.update(files.sample(stored))
        return digest.hexdigest()

    def _locations(self, recipe: Recipe) -> list[tuple[Path, int]]:
        return [_file_and_offset(self._checkpoint.locate(name)) for name in recipe.sources]

    def _values(self, files: TensorFiles, recipe: Recipe) -> list[torch.Tensor]:
        in_order = sorted(map(self._checkpoint.locate, recipe.sources), key=_file_and_offset)
        values = {stored.name: files.read(stored) for stored in in_order}
        return [values[name] for name in recipe.sources]

    def _check_ties(
        self, files: TensorFiles, recipe: Recipe, spec: WeightSpec, values: list[torch.Tensor]
    ) -> None:
        """Refuse a checkpoint with different values for the names of one tensor."""
        for name in spec.aliases:
            other = self._recipes.by_name.get(name, recipe)
            if self._locations(other) == self._locations(recipe):
                continue
            if not all(map(same_values, values, self._values(files, other))):
                raise WeightsError(
                    f"{spec.name} and {name} are one tensor in the model, but {self._path} "
                    f"contains two that differ; build the model without the tie (in config.json: "
                    f"tie_word_embeddings), or use the checkpoint that belongs to it"
                )

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return open_checkpoint(self._path)

    @cached_property
    def _recipes(self) -> Recipes:
        return self._naming.recipes(self._checkpoint.names)

    def _in_file_order(self, specs: Sequence[WeightSpec]) -> list[tuple[Recipe, Requested]]:
        """Return each recipe that the specs need, with these specs, in the order of the files."""
        needed: dict[Recipe, Requested] = {}
        for spec in specs:
            name = self._provided_name(spec)
            needed.setdefault(self._recipes.by_name[name], []).append((name, spec))

        def first_source(item: tuple[Recipe, Requested]) -> tuple[Path, int]:
            return _file_and_offset(self._checkpoint.locate(item[0].sources[0]))

        return sorted(needed.items(), key=first_source)

    def _provided_name(self, spec: WeightSpec) -> str:
        for name in (spec.name, *spec.aliases):
            if name in self._recipes.by_name:
                return name
        raise _missing(spec.name, str(self._path), self._checkpoint.names)

    def _make(
        self, recipe: Recipe, requested: Requested, values: list[torch.Tensor]
    ) -> list[Named]:
        """Make the requested tensors from the values of a recipe's sources."""
        made = recipe.make(values)
        return [(spec.name, self._cast_to(recipe, spec, made[name])) for name, spec in requested]

    def _cast_to(self, recipe: Recipe, spec: WeightSpec, value: torch.Tensor) -> torch.Tensor:
        if tuple(value.shape) != spec.shape:
            raise WeightsError(
                f"{self._sources(recipe)} has shape {tuple(value.shape)}, expected {spec.shape} "
                f"for {spec.name}; use the checkpoint that belongs to this model's configuration"
            )
        castable = self._cast and value.is_floating_point() and spec.dtype.is_floating_point
        if value.dtype != spec.dtype and not castable:
            raise WeightsError(
                f"{self._sources(recipe)} has dtype {value.dtype}, expected {spec.dtype} for "
                f"{spec.name}; build the model in the checkpoint's dtype, or convert the checkpoint"
            )
        return compact(value.to(spec.dtype))  # a part of a fused tensor must not keep all of it

    def _sources(self, recipe: Recipe) -> str:
        file = self._checkpoint.locate(recipe.sources[0]).file
        return f"{_listed(recipe.sources)} in {file}"


def _file_and_offset(stored: Stored) -> tuple[Path, int]:
    return stored.file, stored.offset


def _meta(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    spec = checkpoint.locate(name).spec
    return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _missing(name: str, source: str, present: Iterable[str]) -> WeightsError:
    close = difflib.get_close_matches(name, list(present), n=3)
    hint = f"similar names: {', '.join(close)}" if close else "it has no similar name"
    return WeightsError(
        f"no tensor {name} in {source} ({hint}); "
        f"use the checkpoint that belongs to this model's configuration"
    )


def _surplus(names: Sequence[str], path: Path) -> WeightsError:
    return WeightsError(
        f"{path} contains {_listed(names)}, which the model does not have, expected only its own "
        f"tensors; use the checkpoint that belongs to this model's configuration"
    )
