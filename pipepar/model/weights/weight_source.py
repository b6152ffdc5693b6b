"""One stage's tensors, and no others."""

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


Named: TypeAlias = tuple[str, torch.Tensor]
"""A weight and its `WeightSpec.name`."""

Reading: TypeAlias = Generator[Named, None, None]
"""Weights one after another; to be closed by who does not take all of them."""


class Weights(Protocol):
    """A place where weights lie."""

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names, shapes and dtypes without reading any values.

        Args:
            specs: the tensors that will be read.

        Raises:
            WeightsError: a tensor is missing, does not fit, or belongs to no part of the model.
        """

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        """Read the named tensors and nothing else.

        Args:
            specs: the tensors to read; `check` has accepted them.

        Yields:
            Each tensor on the CPU with its `WeightSpec.name`, in the order in which they lie there.
            A tensor is held no longer than until the next is asked for.

        Raises:
            WeightsError: a tensor is missing or does not fit, or a file is damaged.
        """


class ModuleWeights:
    """The weights of a module that exists already; they are shared, not copied.

    Args:
        module: the module that holds the values.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tensors = named_tensors(module)
        self._holder = type(module).__name__

    def held(self, device: torch.device) -> int:
        """Bytes that lie on a device: a stage of them takes no further memory there."""
        own = {id(tensor): tensor for tensor in self._tensors.values() if tensor.device == device}
        return sum(tensor.nbytes for tensor in own.values())

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names, shapes and dtypes; see `Weights.check`."""
        for spec in specs:
            self._find(spec)

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        """The module's own tensors, detached; see `Weights.read`."""
        return ((spec.name, self._find(spec).detach()) for spec in specs)

    def fingerprint(self) -> str:
        """What tells these values from others; see `module_tensors.fingerprint_of`."""
        return fingerprint_of(self._tensors)

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


class StoredWeights:
    """The weights in a checkpoint, which is opened when they are first asked for.

    Args:
        path: a file that `open_checkpoint` reads.
        naming: how the checkpoint's names belong to the model's.
        cast: whether a tensor of another floating dtype is cast to the model's, as
            transformers does; otherwise that is an error.
    """

    def __init__(self, path: Path, naming: Naming, cast: bool = False) -> None:
        self._path = path
        self._naming = naming
        self._cast = cast

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Verify names, shapes and dtypes from the headers; see `Weights.check`."""
        if self._recipes.surplus:
            raise _surplus(self._recipes.surplus, self._path)
        for recipe, asked in self._ordered(specs):
            headers = [_meta(self._checkpoint, source) for source in recipe.sources]
            try:
                self._made(recipe, asked, headers)
            except (RuntimeError, ValueError, KeyError, IndexError) as error:
                raise WeightsError(
                    f"{asked[0][1].name} cannot be made of {_listed(recipe.sources)} in "
                    f"{self._path} ({error}); the checkpoint may lack a part: copy all of it again"
                ) from error

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        """Read in the order of the files, each opened once; see `Weights.read`."""
        with TensorFiles() as files:
            for recipe, asked in self._ordered(specs):
                values = self._values(files, recipe)
                for _, spec in asked:
                    self._check_ties(files, recipe, spec, values)
                yield from self._made(recipe, asked, values)

    def fingerprint(self) -> str:
        """What tells this checkpoint from others.

        Returns:
            SHA-256 of every tensor's name, shape, dtype and file, of some bytes of its middle, and
            of the files' sizes: little is read, however large they are.

        Raises:
            WeightsError: a file is damaged.
            OSError: it cannot be read.
        """
        digest = hashlib.sha256()
        with TensorFiles() as files:
            for stored in map(self._checkpoint.locate, sorted(self._checkpoint.names)):
                size = stored.file.stat().st_size
                digest.update(f"{stored.name} {stored.file.name} {size} {stored.spec} ".encode())
                digest.update(files.sample(stored))
        return digest.hexdigest()

    def _places(self, recipe: Recipe) -> list[tuple[Path, int]]:
        return [_place(self._checkpoint.locate(name)) for name in recipe.sources]

    def _values(self, files: TensorFiles, recipe: Recipe) -> list[torch.Tensor]:
        places = sorted(map(self._checkpoint.locate, recipe.sources), key=_place)
        values = {stored.name: files.read(stored) for stored in places}
        return [values[name] for name in recipe.sources]

    def _check_ties(
        self, files: TensorFiles, recipe: Recipe, spec: WeightSpec, values: list[torch.Tensor]
    ) -> None:
        """One tensor under several names must be one, or what was trained apart would be lost."""
        for name in spec.aliases:
            other = self._recipes.by_name.get(name, recipe)
            if self._places(other) == self._places(recipe):
                continue
            if not all(map(same_values, values, self._values(files, other))):
                raise WeightsError(
                    f"{spec.name} and {name} are one tensor in the model, but {self._path} holds "
                    f"two that differ; build the model without the tie (in config.json: "
                    f"tie_word_embeddings), or use the checkpoint that belongs to it"
                )

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return open_checkpoint(self._path)

    @cached_property
    def _recipes(self) -> Recipes:
        return self._naming.recipes(self._checkpoint.names)

    def _ordered(
        self, specs: Sequence[WeightSpec]
    ) -> list[tuple[Recipe, list[tuple[str, WeightSpec]]]]:
        """Each recipe once, with what is wanted of it, as the files have them."""
        wanted: dict[Recipe, list[tuple[str, WeightSpec]]] = {}
        for spec in specs:
            name = self._stored_name(spec)
            wanted.setdefault(self._recipes.by_name[name], []).append((name, spec))
        return sorted(
            wanted.items(), key=lambda item: _place(self._checkpoint.locate(item[0].sources[0]))
        )

    def _stored_name(self, spec: WeightSpec) -> str:
        for name in (spec.name, *spec.aliases):
            if name in self._recipes.by_name:
                return name
        raise _missing(spec.name, str(self._path), self._checkpoint.names)

    def _made(
        self, recipe: Recipe, asked: list[tuple[str, WeightSpec]], values: list[torch.Tensor]
    ) -> list[Named]:
        """The tensors asked for, of the values of a recipe's sources."""
        made = recipe.make(values)
        return [(spec.name, self._fitted(recipe, spec, made[name])) for name, spec in asked]

    def _fitted(self, recipe: Recipe, spec: WeightSpec, value: torch.Tensor) -> torch.Tensor:
        if tuple(value.shape) != spec.shape:
            raise WeightsError(
                f"{self._where(recipe)} has shape {tuple(value.shape)}, expected {spec.shape} for "
                f"{spec.name}; use the checkpoint that belongs to this model's configuration"
            )
        castable = self._cast and value.is_floating_point() and spec.dtype.is_floating_point
        if value.dtype != spec.dtype and not castable:
            raise WeightsError(
                f"{self._where(recipe)} has dtype {value.dtype}, expected {spec.dtype} for "
                f"{spec.name}; build the model in the checkpoint's dtype, or convert the checkpoint"
            )
        return compact(value.to(spec.dtype))  # of a fused tensor, its part alone

    def _where(self, recipe: Recipe) -> str:
        file = self._checkpoint.locate(recipe.sources[0]).file
        return f"{_listed(recipe.sources)} in {file}"


def _place(stored: Stored) -> tuple[Path, int]:
    return stored.file, stored.offset


def _meta(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    spec = checkpoint.locate(name).spec
    return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _missing(name: str, place: str, present: Iterable[str]) -> WeightsError:
    close = difflib.get_close_matches(name, list(present), n=3)
    hint = f"close names there: {', '.join(close)}" if close else "no name there is close"
    return WeightsError(
        f"no tensor {name} in {place} ({hint}); "
        f"use the checkpoint that belongs to this model's configuration"
    )


def _surplus(names: Sequence[str], path: Path) -> WeightsError:
    return WeightsError(
        f"{path} holds {_listed(names)}, which the model does not have, expected its own tensors "
        f"only; use the checkpoint that belongs to this model's configuration"
    )
