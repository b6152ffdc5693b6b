from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipepar.data.readers.open_prepared import open_arrays
from pipepar.data.readers.reader import Reader
from pipepar.data.readers.registry import find_input_format
from pipepar.errors import InputError


def whole(reader: Reader, micro_batch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return all samples, and all values by name; positional arguments are named by index."""
    feeds = list(reader.feeds(micro_batch))
    assert all(1 <= len(feed.samples) <= micro_batch for feed in feeds)
    named = [{**{str(at): t for at, t in enumerate(f.args)}, **f.kwargs} for f in feeds]
    values = {name: torch.cat([each[name] for each in named]) for name in named[0]}
    return torch.cat([feed.samples for feed in feeds]), values


@pytest.mark.parametrize("micro_batch", [1, 3, 10, 11])
def test_npy_rows_come_in_order_with_their_positions(tmp_path: Path, micro_batch: int) -> None:
    array = np.random.default_rng(0).random((10, 2, 3), dtype=np.float32)
    np.save(tmp_path / "x.npy", array)
    reader = open_arrays(tmp_path / "x.npy")
    samples, values = whole(reader, micro_batch)
    assert len(reader) == 10
    assert samples.dtype == torch.int64
    assert samples.tolist() == list(range(10))
    assert torch.equal(values["0"], torch.from_numpy(array))


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda array: array.astype(">f8"),
        lambda array: array.astype(np.uint16),
        lambda array: array > 5,
        lambda array: array.astype(np.complex64),
    ],
)
def test_npy_of_any_order_and_number_type(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    array = change(np.arange(12.0).reshape(4, 3))
    np.save(tmp_path / "x.npy", array)
    _, values = whole(open_arrays(tmp_path / "x.npy"), 3)
    assert values["0"].numpy().dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(values["0"].numpy(), array)


def test_npy_is_mapped_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "huge.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(2**34, 16))  # 1 TiB, sparse
    tracemalloc.start()
    reader = open_arrays(path)
    assert len(reader) == 2**34
    assert next(reader.feeds(4)).args[0].shape == (4, 16)
    assert reader.example().args[0].shape == (2, 16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_truncated_file_yields_no_zeros(tmp_path: Path) -> None:
    """A map reads zeros between the end of a file and the end of its last page."""
    np.save(tmp_path / "x.npy", np.ones((10, 2), np.int64))
    feeds = open_arrays(tmp_path / "x.npy").feeds(5)
    next(feeds)
    os.truncate(tmp_path / "x.npy", 128 + 7 * 16)
    with pytest.raises(InputError, match=r"has 240 bytes now; expected 288"):
        next(feeds)


def test_writing_to_a_feed_does_not_change_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 2), np.float32))
    reader = open_arrays(tmp_path / "x.npy")
    next(reader.feeds(2)).args[0].fill_(1)
    assert not next(reader.feeds(2)).args[0].any()


def test_npz_arrays_are_keyword_arguments(tmp_path: Path) -> None:
    ids, mask = np.arange(10).reshape(5, 2), np.ones((5, 2), bool)
    np.savez_compressed(tmp_path / "x.npz", input_ids=ids, attention_mask=mask)
    samples, values = whole(open_arrays(tmp_path / "x.npz"), 2)
    assert samples.tolist() == [0, 1, 2, 3, 4]
    assert list(values) == ["input_ids", "attention_mask"]
    assert torch.equal(values["input_ids"], torch.from_numpy(ids))
    assert torch.equal(values["attention_mask"], torch.from_numpy(mask))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool]
)
def test_safetensors_keep_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"x": torch.randn(5, 3).to(dtype), "y": torch.arange(5)}
    save_file(tensors, tmp_path / "x.safetensors")
    samples, values = whole(open_arrays(tmp_path / "x.safetensors"), 2)
    assert samples.tolist() == [0, 1, 2, 3, 4]
    assert values["x"].dtype == dtype
    assert torch.equal(values["x"].view(torch.uint8), tensors["x"].view(torch.uint8))
    assert torch.equal(values["y"], tensors["y"])


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_example_is_the_first_rows(tmp_path: Path, rows: int) -> None:
    array = np.arange(rows * 2).reshape(rows, 2)
    np.save(tmp_path / "x.npy", array)
    feed = open_arrays(tmp_path / "x.npy").example()
    assert feed.samples.tolist() == [0, 1][:rows]
    assert torch.equal(feed.args[0], torch.from_numpy(array[:2]))


def test_empty_files_have_no_feeds_and_an_example_of_zeros(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 3), np.float32))
    np.savez(tmp_path / "x.npz", a=np.zeros((0, 3), np.float32))
    save_file({"a": torch.zeros(0, 3, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    for suffix in ("npy", "npz", "safetensors"):
        dtype = torch.bfloat16 if suffix == "safetensors" else torch.float32
        reader = open_arrays(tmp_path / f"x.{suffix}")
        feed = reader.example()
        assert len(reader) == 0
        assert list(reader.feeds(4)) == []
        (value,) = (*feed.args, *feed.kwargs.values())
        assert torch.equal(value, torch.zeros(2, 3, dtype=dtype))
        assert len(feed.samples) == 2


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 150, -1])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, np.ones((50, 3)))
    elif suffix == "npz":
        np.savez(path, a=np.ones((50, 3)))
    else:
        save_file({"a": torch.ones(50, 3)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"{path} .*[Cc]opy .*again"):
        open_arrays(path)


def test_a_damaged_npz_member_is_found_at_open(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.ones((50, 3)))
    data = bytearray(path.read_bytes())
    data[500] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="copy the file again"):
        open_arrays(path)


@pytest.mark.parametrize(
    "array", [np.array([{}, []], dtype=object), np.array(3.0), np.array(["a"])]
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_without_rows_of_numbers_are_refused(
    tmp_path: Path, array: np.ndarray, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    np.save(path, array) if suffix == "npy" else np.savez(path, a=array)
    with pytest.raises(InputError, match=rf"{path}.*[Ee]xpected"):
        open_arrays(path)


def test_safetensors_0d(tmp_path: Path) -> None:
    save_file({"scale": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="'scale' is a 0-d array"):
        open_arrays(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_unequal_rows_are_listed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        np.savez(path, a=np.ones(3), b=np.ones(4))
    else:
        save_file({"a": torch.ones(3), "b": torch.ones(4)}, path)
    with pytest.raises(InputError, match="'a' has 3, 'b' has 4"):
        open_arrays(path)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_files_without_arrays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    np.savez(path) if suffix == "npz" else save_file({}, path)
    with pytest.raises(InputError, match="contains no array"):
        open_arrays(path)


def test_a_npy_file_named_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"Rename it to \.npy"):
        open_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("micro_batch", [0, -1])
def test_micro_batch_is_checked_by_the_call(tmp_path: Path, micro_batch: int) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(InputError, match="at least 1"):
        open_arrays(tmp_path / "x.npy").feeds(micro_batch)


def test_the_kind_of_an_input(tmp_path: Path) -> None:
    kinds = {"a.txt": "text", "a.jsonl": "text", "a.npy": "arrays", "a.npz": "arrays"}
    for name, kind in {**kinds, "a.SAFETENSORS": "arrays"}.items():
        (tmp_path / name).touch()
        assert find_input_format(tmp_path / name).kind == kind


def test_inputs_of_unknown_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match=r"'\.csv'; expected one of \.npy, \.npz.*\.jsonl"):
        find_input_format(tmp_path / "a.csv")
    with pytest.raises(InputError, match="does not exist"):
        find_input_format(tmp_path / "a.npy")
    assert find_input_format(tmp_path / "folder.npy").kind == "pictures"  # whatever its name


def test_open_arrays_refuses_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"expected one of \.npy, \.npz, \.safetensors"):
        open_arrays(tmp_path / "a.txt")
