"""Reads of a checkpoint: complete, once per tensor, and in file order; and its fingerprint."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipepar.errors import WeightsError
from pipepar.model.weights import checkpoint
from pipepar.model.weights.checkpoint import Checkpoint, Stored, TensorFiles
from pipepar.model.weights.checkpoint_formats import open_checkpoint
from pipepar.model.weights.recipes import Recipe, Recipes, SameNames
from pipepar.model.weights.weight_source import StoredWeights, WeightSpec

VALUES = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(3.0) + 10}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(VALUES, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def located(file: Path, name: str = "a") -> Stored:
    return open_checkpoint(file).locate(name)


def weights(file: Path) -> StoredWeights:
    return StoredWeights(file, SameNames({"a", "b", "c"}))


def spec(name: str, *aliases: str, shape: tuple[int, ...] = (2, 3)) -> WeightSpec:
    return WeightSpec(name, aliases, shape, torch.float32)


def test_a_read_may_return_fewer_bytes_than_requested(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux returns at most 2 GiB, and a network file system may return less."""
    preadv = os.preadv

    def at_most_five(handle: int, buffers: Any, offset: int) -> int:
        return preadv(handle, [buffer[:5] for buffer in buffers], offset)

    monkeypatch.setattr(os, "preadv", at_most_five)
    with TensorFiles() as files:
        for name, values in VALUES.items():
            assert torch.equal(files.read(located(file, name)), values), name


def test_a_tensor_larger_than_one_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[int] = []
    preadv = os.preadv

    def recorded(handle: int, buffers: Any, offset: int) -> int:
        requested.append(sum(map(len, buffers)))
        return preadv(handle, buffers, offset)

    monkeypatch.setattr(checkpoint, "_READ_BYTES", 7)
    monkeypatch.setattr(os, "preadv", recorded)
    with TensorFiles() as files:
        assert torch.equal(files.read(located(file)), VALUES["a"])
    assert requested == [7, 7, 7, 3]


DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool"
DTYPES += " float8_e4m3fn float8_e5m2 float8_e8m0fnu complex64"


@pytest.mark.parametrize("name", DTYPES.split())
def test_every_dtype_of_a_safetensors_file(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    values = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0] * 2, dtype=torch.uint8).view(dtype)
    file = tmp_path / "w.safetensors"
    save_file({"a": values}, file)
    with TensorFiles() as files:
        found = files.read(located(file))
    assert found.dtype is dtype
    assert torch.equal(found.view(torch.uint8), values.view(torch.uint8))


def test_a_failed_read_names_the_tensor_the_file_and_the_reason(file: Path) -> None:
    stored = located(file)
    file.unlink()
    with TensorFiles() as files, pytest.raises(WeightsError) as caught:
        files.read(stored)
    assert f"a cannot be read from {file}: No such file" in str(caught.value)
    file.mkdir()
    with TensorFiles() as files, pytest.raises(WeightsError) as caught:
        files.read(stored)
    assert f"a cannot be read from {file}: Is a directory" in str(caught.value)


def test_files_are_opened_once_and_closed(file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    stored = [located(file, name) for name in VALUES]
    with TensorFiles() as files:
        for each in stored * 2:
            files.read(each)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shards_header_is_read_once(file: Path) -> None:
    read: list[Path] = []

    def header(path: Path) -> dict[str, Stored]:
        read.append(path)
        return {name: located(path, name) for name in VALUES}

    found = Checkpoint(file, dict.fromkeys(VALUES, file), header)
    assert not read
    assert [found.locate(name).name for name in ("a", "b", "a")] == ["a", "b", "a"]
    assert read == [file]


def test_one_tensor_under_two_names_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": VALUES["a"], "c": VALUES["a"]}, tmp_path / "model.bin")
    count, preadv = [0], os.preadv

    def counted(handle: int, buffers: Any, offset: int) -> int:
        count[0] += 1
        return preadv(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    ((_, read),) = weights(tmp_path / "model.bin").read([spec("a", "c")])
    assert torch.equal(read, VALUES["a"])
    assert count == [1]


def test_tied_tensors_must_be_equal(tmp_path: Path) -> None:
    same = {"a": torch.tensor([1.0, float("nan")]), "c": torch.tensor([1.0, float("nan")])}
    save_file(same, tmp_path / "same.safetensors")
    tied = spec("a", "c", shape=(2,))
    assert len(list(weights(tmp_path / "same.safetensors").read([tied]))) == 1
    for other in (torch.tensor([1.0, 2.0]), torch.ones(3), torch.tensor([1, 1])):
        save_file({**same, "c": other}, tmp_path / "other.safetensors")
        with pytest.raises(WeightsError, match="contains two that differ"):
            list(weights(tmp_path / "other.safetensors").read([tied]))


class Stacked:
    """The naming of a model whose tensors are each stacked from two tensors of the file."""

    def recipes(self, stored: Collection[str]) -> Recipes:
        def made(name: str) -> Recipe:
            sources = (f"{name}1", f"{name}2")
            return Recipe(sources, lambda values: {name: torch.stack(values)})

        return Recipes({name: made(name) for name in ("a", "c")}, ())


def test_tied_stacked_tensors_must_have_equal_parts(tmp_path: Path) -> None:
    one, two = torch.ones(2), torch.zeros(2)
    parts = {"a1": one, "a2": two, "c1": one.clone(), "c2": two.clone()}
    save_file(parts, tmp_path / "same.safetensors")
    tied = spec("a", "c", shape=(2, 2))
    ((_, read),) = StoredWeights(tmp_path / "same.safetensors", Stacked()).read([tied])
    assert torch.equal(read, torch.stack([one, two]))
    save_file({**parts, "c2": one.clone()}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="contains two that differ"):
        list(StoredWeights(tmp_path / "other.safetensors", Stacked()).read([tied]))


def test_the_parts_of_a_tensor_are_read_in_file_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe may need them in another order."""
    offsets, preadv = list[int](), os.preadv

    def recorded(handle: int, buffers: Any, offset: int) -> int:
        offsets.append(offset)
        return preadv(handle, buffers, offset)

    first, second = torch.ones(2), torch.zeros(2)
    parts = {"a1": second, "a2": first, "c1": second, "c2": first}
    torch.save(dict(reversed(parts.items())), tmp_path / "model.bin")
    monkeypatch.setattr(os, "preadv", recorded)
    read = StoredWeights(tmp_path / "model.bin", Stacked()).read([spec("a", shape=(2, 2))])
    ((_, found),) = read
    assert torch.equal(found, torch.stack([second, first]))
    assert len(offsets) == 2
    assert offsets == sorted(offsets)


class Halved:
    """The naming of a model with two tensors that are one tensor in the file."""

    def recipes(self, stored: Collection[str]) -> Recipes:
        both = Recipe(("ab",), lambda values: dict(zip("ab", values[0].chunk(2), strict=True)))
        return Recipes({"a": both, "b": both}, ())


def test_a_part_of_a_fused_tensor_holds_only_its_own_memory(tmp_path: Path) -> None:
    fused = torch.arange(12.0).view(4, 3)
    save_file({"ab": fused}, tmp_path / "fused.safetensors")
    stored = StoredWeights(tmp_path / "fused.safetensors", Halved())
    ((_, part),) = stored.read([spec("b")])
    assert torch.equal(part, fused[2:])
    assert part.untyped_storage().nbytes() == part.nbytes


def fingerprint(file: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> str:
    save_file(tensors, file, metadata=metadata or None)
    return weights(file).fingerprint()


def test_different_checkpoints_have_different_fingerprints(file: Path, tmp_path: Path) -> None:
    long = torch.arange(10_000.0)
    original = {"a": long, "b": VALUES["b"]}
    middle = long.clone()
    middle[5_000] = -1.0
    prints = [
        fingerprint(file, original),
        fingerprint(file, {**original, "a": middle}),
        fingerprint(file, {"a": long, "c": VALUES["b"]}),
        fingerprint(file, {**original, "b": VALUES["b"].view(torch.int32)}),
        fingerprint(file, {**original, "b": VALUES["b"][None]}),
        fingerprint(file, original, note="saved again"),
        fingerprint(tmp_path / "other.safetensors", original),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(file, original) == prints[0]
