from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from pipepar.data.writers.open_output import open_output
from pipepar.errors import InputError, PipeparError
from tests.helpers.jobs.outputs import SUFFIXES, only, read, write


def write_parts(
    path: Path, count: int, *parts: tuple[Sequence[int], dict[str, torch.Tensor]]
) -> None:
    with open_output(path, count) as writer:
        for samples, values in parts:
            writer.write(torch.tensor(samples, dtype=torch.int64), values)


def fail_within(path: Path, error: BaseException) -> None:
    with open_output(path, 2) as writer:
        writer.write(torch.tensor([0]), {"y": torch.ones(1, 2)})
        raise error


@given(
    st.permutations(range(11)),
    st.integers(1, 12),
    st.sampled_from(SUFFIXES),
    st.sampled_from([(), (3,), (2, 0)]),
)
def test_any_order_of_micro_batches_gives_the_inputs_order(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    micro_batch: int,
    suffix: str,
    row: tuple[int, ...],
) -> None:
    values = {"y": torch.randn(11, *row)}
    path = tmp_path_factory.mktemp("out") / f"y.{suffix}"
    write(path, values, [order[at : at + micro_batch] for at in range(0, 11, micro_batch)])
    assert torch.equal(read(path)["y"], values["y"])
    assert only(path.parent, path.name)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.complex64,
        torch.int64,
        torch.uint16,
        torch.bool,
    ],
)
def test_safetensors_preserve_any_dtype_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    values = {
        "one": (torch.randn(5, 3) * 9).to(dtype),
        "two": torch.randn(5, 2, 2),
        "three": torch.arange(5).bool(),
    }
    write(tmp_path / "y.safetensors", values, [[4, 0], [1, 2], [3]])
    found = load_file(tmp_path / "y.safetensors")
    assert set(found) == set(values)
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8))
    with safe_open(tmp_path / "y.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex128, torch.bool, torch.uint32])
def test_npy_keeps_the_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.arange(6).reshape(3, 2).to(dtype)
    write(tmp_path / "y.npy", {"y": value}, [[2], [0, 1]])
    assert np.array_equal(np.load(tmp_path / "y.npy"), value.numpy())
    assert np.load(tmp_path / "y.npy").dtype == value.numpy().dtype


@pytest.mark.parametrize(
    "value", [torch.randn(4, 3).T, torch.randn(3, 2, dtype=torch.cfloat).conj()]
)
def test_values_that_are_views(tmp_path: Path, value: torch.Tensor) -> None:
    assert value.is_conj() or not value.is_contiguous()
    write_parts(tmp_path / "y.npy", 3, (range(3), {"y": value}))
    assert np.array_equal(np.load(tmp_path / "y.npy"), value.resolve_conj().numpy())


def test_values_that_need_gradients_or_share_memory(tmp_path: Path) -> None:
    with open_output(tmp_path / "z.npy", 2) as writer:
        writer.write(torch.arange(2), {"z": torch.ones(1, requires_grad=True).expand(2)})
    assert np.load(tmp_path / "z.npy").tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e5m2])
def test_jsonl_floats_are_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.randn(50, 3).to(dtype)
    write(tmp_path / "y.jsonl", {"y": value}, [range(50)])
    assert torch.equal(read(tmp_path / "y.jsonl")["y"].to(dtype).double(), value.double())
    assert json.loads((tmp_path / "y.jsonl").read_text().splitlines()[7])["y"] == value[7].tolist()


def test_jsonl_names_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    values = {"b": torch.tensor([math.inf, math.nan]), "a": torch.tensor([[1], [2]])}
    write(tmp_path / "y.jsonl", values, [[1], [0]])
    expected = '{"b": Infinity, "a": [1]}\n{"b": NaN, "a": [2]}\n'
    assert (tmp_path / "y.jsonl").read_text() == expected


def test_jsonl_rows_may_differ_in_shape(tmp_path: Path) -> None:
    with open_output(tmp_path / "y.jsonl", 3) as writer:
        writer.write(torch.tensor([2]), {"y": torch.tensor([[7, 8, 9]])})
        writer.write(torch.tensor([1, 0]), {"y": torch.tensor([[3], [4]])})
    rows = [json.loads(line)["y"] for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert rows == [[4], [3], [7, 8, 9]]


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_lines_are_copied_in_parts(
    tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of consecutive samples are copied together, in any order of arrival."""
    monkeypatch.setattr("pipepar.data.writers.line_writer._COPY_BYTES", piece)
    value = torch.arange(11.0)[:, None]
    write(tmp_path / "y.jsonl", {"y": value}, [[4, 5, 6], [7], [0, 1], [9, 8], [10], [2, 3]])
    assert torch.equal(read(tmp_path / "y.jsonl")["y"], value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_output_appears_at_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"y.{suffix}"
    path.write_text("before")
    with open_output(path, 1) as writer:
        writer.write(torch.tensor([0]), {"y": torch.ones(1, 2)})
        assert path.read_text() == "before"
    assert torch.equal(read(path)["y"], torch.ones(1, 2))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exception_leaves_the_folder_unchanged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"y.{suffix}"
    with pytest.raises(ZeroDivisionError):
        fail_within(path, ZeroDivisionError())
    assert only(tmp_path)
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        fail_within(path, KeyboardInterrupt())
    assert path.read_text() == "before"
    assert only(tmp_path, path.name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_samples_are_refused(tmp_path: Path, suffix: str) -> None:
    match = "3 of 5 samples never arrived, sample 1 first"
    with pytest.raises(PipeparError, match=match), open_output(tmp_path / f"y.{suffix}", 5) as w:
        w.write(torch.tensor([3, 0]), {"y": torch.ones(2)})
    assert only(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_samples_give_an_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"y.{suffix}"
    with open_output(path, 0):
        pass
    if suffix == "npy":
        assert np.load(path).shape == (0,)
        assert np.load(path).dtype == np.float32
    elif suffix == "safetensors":
        assert load_file(path) == {}
    else:
        assert path.read_bytes() == b""


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("samples", "match"),
    [
        ([2], "sample 2 is out of range; expected 0 to 1"),
        ([-1], "sample -1 is out of range"),
        ([0], "sample 0 arrived twice"),
        ([1, 1], "sample 1 arrived twice"),
    ],
)
def test_invalid_samples_are_refused(
    tmp_path: Path, suffix: str, samples: list[int], match: str
) -> None:
    first, second = torch.ones(1), torch.ones(len(samples))
    with pytest.raises(PipeparError, match=match):
        write_parts(tmp_path / f"y.{suffix}", 2, ([0], {"y": first}), (samples, {"y": second}))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"y": torch.ones(3)}, r"'y' has shape \(3,\); expected 2 rows"),
        ({"y": torch.tensor(1.0)}, r"'y' has shape \(\)"),
        ({"z": torch.ones(2)}, "found the values 'z'; expected 'y' again"),
        ({"y": torch.ones(2), "z": torch.ones(2)}, "found the values 'y', 'z'"),
        ({}, r"found the values \(none\)"),
    ],
)
def test_invalid_values_are_refused(
    tmp_path: Path, suffix: str, values: dict[str, torch.Tensor], match: str
) -> None:
    first = {"y": torch.ones(2)}
    with pytest.raises(InputError, match=match):
        write_parts(tmp_path / f"y.{suffix}", 4, ([0, 1], first), ([2, 3], values))


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
@pytest.mark.parametrize("value", [torch.ones(1, 3), torch.ones(1, 2, dtype=torch.float64)])
def test_array_formats_refuse_rows_of_other_shapes(
    tmp_path: Path, suffix: str, value: torch.Tensor
) -> None:
    match = r"sample 2 .*'y'; expected shape \(2,\) and dtype torch\.float32.*\.jsonl"
    first = {"y": torch.ones(2, 2)}
    with pytest.raises(InputError, match=match):
        write_parts(tmp_path / f"y.{suffix}", 3, ([0, 1], first), ([2], {"y": value}))


def test_npy_refuses_several_values(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 values, 'a', 'b';.*\.safetensors or \.jsonl"):
        write(tmp_path / "y.npy", {"a": torch.ones(1), "b": torch.ones(1)}, [[0]])
    assert only(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_npy_refuses_unsupported_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=rf"'y' has dtype {dtype}.*\.safetensors"):
        write(tmp_path / "y.npy", {"y": torch.ones(1).to(dtype)}, [[0]])


def test_other_formats_refuse_unsupported_dtypes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'y' torch\.complex128.*\.npy"):
        write(tmp_path / "y.safetensors", {"y": torch.ones(1).to(torch.complex128)}, [[0]])
    with pytest.raises(InputError, match=r"no complex numbers.*\.safetensors"):
        write(tmp_path / "y.jsonl", {"y": torch.ones(1).to(torch.complex64)}, [[0]])


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize("count", [1, 1000])
def test_safetensors_data_are_aligned(tmp_path: Path, length: int, count: int) -> None:
    """For any length of the header, as readers that map the file expect."""
    path, value = tmp_path / "y.safetensors", torch.arange(2.0 * count).reshape(count, 2).double()
    write(path, {"y" * length: value, "x": value[:, 0] > 1}, [range(count)])
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    offset, _ = json.loads(data[8:header])["y" * length]["data_offsets"]
    assert header % 8 == 0
    assert (header + offset) % 8 == 0
    assert torch.equal(load_file(path)["y" * length], value)
