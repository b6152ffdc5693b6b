"""Stored weights: only the requested tensors are read, and damaged files are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.torch_version import TorchVersion

from pipepar.errors import WeightsError
from pipepar.model.weights.recipes import SameNames
from pipepar.model.weights.weight_source import StoredWeights, WeightSpec


def spec(
    name: str,
    shape: tuple[int, ...] = (2, 3),
    dtype: torch.dtype = torch.float32,
    aliases: tuple[str, ...] = (),
) -> WeightSpec:
    return WeightSpec(name, aliases, shape, dtype)


def opened(path: Path, *more: str, cast: bool = False) -> StoredWeights:
    """Open the weights of a model with the names in the file and `more`."""
    names = {"encoder.dense.weight", "encoder.dense.bias", "encoder.norm.weight", "count", "a", "b"}
    return StoredWeights(path, SameNames({*names, *more}), cast)


@pytest.fixture
def stored() -> Any:
    return {
        "encoder.dense.weight": torch.randn(2, 3),
        "encoder.dense.bias": torch.randn(3),
        "encoder.norm.weight": torch.randn(3),
        "count": torch.tensor([1, 2]),
    }


@pytest.fixture
def file(tmp_path: Path, stored: dict[str, torch.Tensor]) -> Any:
    save_file(stored, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_only_requested_tensors_are_read(file: Path, stored: dict[str, torch.Tensor]) -> None:
    read = dict(opened(file).read([spec("encoder.dense.weight")]))
    assert list(read) == ["encoder.dense.weight"]
    assert torch.equal(read["encoder.dense.weight"], stored["encoder.dense.weight"])


def test_memory_is_aligned(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i) for i in range(1, 9)}
    save_file(tensors, tmp_path / "odd.safetensors")
    specs = [spec(name, tuple(t.shape)) for name, t in tensors.items()]
    for name, tensor in opened(tmp_path / "odd.safetensors", *tensors).read(specs):
        assert tensor.data_ptr() % 64 == 0
        assert torch.equal(tensor, tensors[name])


def test_a_tied_tensor_is_found_under_its_other_name(
    file: Path, stored: dict[str, torch.Tensor]
) -> None:
    specs = [spec("head.weight", aliases=("encoder.dense.weight",))]
    read = dict(opened(file, "head.weight").read(specs))
    assert torch.equal(read["head.weight"], stored["encoder.dense.weight"])


@pytest.mark.parametrize("method", ["check", "read"])
@pytest.mark.parametrize(
    ("requested", "words"),
    [
        (spec("encoder.dense.weights"), ["encoder.dense.weights", "similar names", "bias"]),
        (spec("zzz"), ["no tensor zzz", "has no similar name"]),
        (spec("encoder.dense.weight", (3, 2)), ["has shape (2, 3), expected (3, 2)"]),
        (spec("encoder.dense.weight", dtype=torch.bfloat16), ["torch.float32", "torch.bfloat16"]),
    ],
)
def test_the_error_explains_a_mismatch(
    file: Path, requested: WeightSpec, words: list[str], method: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        list(getattr(opened(file), method)([requested]) or ())
    for word in [*words, str(file)]:
        assert word in str(caught.value)


def test_a_cast_needs_the_option_and_two_floating_dtypes(
    file: Path, stored: dict[str, torch.Tensor]
) -> None:
    specs = [spec("encoder.dense.weight", dtype=torch.bfloat16)]
    ((_, read),) = opened(file, cast=True).read(specs)
    assert torch.equal(read, stored["encoder.dense.weight"].bfloat16())
    with pytest.raises(WeightsError, match="int64"):
        opened(file, cast=True).check([spec("count", (2,))])
    with pytest.raises(WeightsError, match=r"expected torch\.int64"):
        opened(file, cast=True).check([spec("encoder.norm.weight", (3,), torch.int64)])


@pytest.mark.parametrize("size", [0, 4, 40, -5])
def test_a_truncated_file_is_named(file: Path, size: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:size])
    with pytest.raises(WeightsError, match="truncated") as caught:
        opened(file).check([spec("encoder.dense.weight")])
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights at .*gone.safetensors"):
        opened(tmp_path / "gone.safetensors").check([])


@pytest.fixture
def index(tmp_path: Path) -> Any:
    tensors = {"a": torch.randn(2), "b": torch.randn(3)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {n: f"{n}.safetensors" for n in tensors}}))
    return path


def test_shards_are_read_through_their_index(index: Path) -> None:
    read = dict(opened(index).read([spec("b", (3,)), spec("a", (2,))]))
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {"a": (2,), "b": (3,)}


def test_only_the_shards_needed_are_opened(index: Path) -> None:
    (index.parent / "a.safetensors").write_bytes(b"damaged")
    assert [name for name, _ in opened(index).read([spec("b", (3,))])] == ["b"]
    with pytest.raises(WeightsError, match=r"a\.safetensors cannot be read"):
        opened(index).check([spec("a", (2,))])


def test_a_missing_shard_is_named(index: Path) -> None:
    (index.parent / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"b\.safetensors, which does not exist"):
        opened(index).check([])


def test_an_empty_index_contains_no_tensor(index: Path) -> None:
    index.write_text('{"weight_map": {}}')
    opened(index).check([])
    with pytest.raises(WeightsError, match=r"no tensor a in .*index\.json"):
        opened(index).check([spec("a", (2,))])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_file_that_is_not_an_index_is_refused(index: Path, text: str) -> None:
    index.write_text(text)
    with pytest.raises(WeightsError, match="is not an index of weight files"):
        opened(index).check([])


def test_a_surplus_tensor_is_named(file: Path) -> None:
    weights = StoredWeights(file, SameNames({"encoder.dense.weight", "encoder.dense.bias"}))
    with pytest.raises(WeightsError, match=r"contains count, encoder\.norm\.weight, which"):
        weights.check([spec("encoder.dense.weight")])


def damaged(file: Path, change: Any) -> None:
    """Change the header of a safetensors file, and nothing else."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_offsets": [0, 20]}, r"count in .*safetensors has bytes 0 to 20, expected 16 for"),
        ({"data_offsets": [-8, 8]}, "count in .*safetensors has bytes -8 to 8"),
        ({"data_offsets": [900, 916]}, "count in .*safetensors ends at byte .* truncated"),
        ({"dtype": "F4"}, "count in .*safetensors has dtype F4, which torch lacks"),
        ({"shape": [-2]}, "cannot be read as safetensors"),
        ({"shape": None}, "cannot be read as safetensors"),
    ],
)
def test_a_damaged_entry_is_named(file: Path, change: Any, message: str) -> None:
    damaged(file, lambda header: header["count"].update(change))
    with pytest.raises(WeightsError, match=message):
        opened(file).check([spec("count", (2,), torch.int64)])


def test_a_file_that_shrinks_after_the_check_is_refused(file: Path) -> None:
    weights, specs = opened(file), [spec("encoder.dense.weight"), spec("encoder.dense.bias", (3,))]
    weights.check(specs)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(WeightsError, match=r"encoder\.\w+\.\w+ in .* has \d+ of its \d+ bytes"):
        list(weights.read(specs))


def test_a_shard_that_lacks_a_tensor_of_the_index_is_refused(index: Path) -> None:
    save_file({"other": torch.randn(2)}, index.parent / "a.safetensors")
    with pytest.raises(WeightsError, match=r"no tensor a in .*a\.safetensors, where .*index\.json"):
        opened(index).check([spec("a", (2,))])


def test_a_state_dict_of_torch_is_read_in_parts(tmp_path: Path) -> None:
    base = torch.randn(6, 4).double()
    state = {"a": base.t(), "b": base[1:3], "count": torch.tensor([1, 2])}
    torch.save(state, tmp_path / "model.bin")
    float64 = torch.float64
    specs = [spec("a", (4, 6), float64), spec("b", (2, 4), float64)]
    specs.append(spec("count", (2,), torch.int64))
    weights = opened(tmp_path / "model.bin")
    weights.check(specs)
    for name, tensor in weights.read(specs):
        assert torch.equal(tensor, state[name])
        assert tensor.stride() == state[name].stride()


# From 2.14 on, torch refuses the file before it gives the name of the tensor.
SPARSE = (
    "a in .* is sparse, quantized or a"
    if TorchVersion(torch.__version__) < "2.14"
    else "a tensor in .* is sparse or quantized"
)


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("must not be printed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Harmful()}, "more than tensors, which could run code"),
        ([torch.ones(2)], "contains a list, expected a state dict"),
        ({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, "contains state_dict, epoch, expected"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, "a in .* is sparse, quantized or a"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj().imag}, "a in .* is sparse, quantized"),
        ({"a": torch.eye(2).to_sparse()}, SPARSE),
    ],
)
def test_a_torch_file_that_is_not_a_state_dict_is_refused(
    tmp_path: Path, content: Any, message: str, capsys: Any
) -> None:
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(WeightsError, match=message):
        opened(tmp_path / "model.bin").check([])
    assert "must not" not in capsys.readouterr().out


def test_an_empty_state_dict_contains_no_tensor(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.bin")
    opened(tmp_path / "model.bin").check([])
    with pytest.raises(WeightsError, match=r"no tensor a in .*model\.bin"):
        opened(tmp_path / "model.bin").check([spec("a", (2,))])


def test_a_damaged_or_very_old_torch_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"before version 1\.6"):
        opened(path).check([])
    torch.save({"a": torch.ones(2)}, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="truncated"):
        opened(path).check([])


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors", "model.bin.index.json"])
def test_a_git_lfs_pointer_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        opened(tmp_path / name).check([])


def test_tied_tensors_that_differ_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "w.safetensors")
    specs = [spec("a", (2,), aliases=("b",))]
    assert [name for name, _ in opened(tmp_path / "w.safetensors").read(specs)] == ["a"]
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"a and b are one tensor in the model, but .* differ"):
        list(opened(tmp_path / "w.safetensors").read(specs))


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"is in \.h5 files, expected \.safetensors"):
        opened(tmp_path / "model.h5").check([])
