"""The right tensors, no others, and clear words about damaged files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipepar.errors import WeightsError
from pipepar.model.weights import ModuleWeights, Naming, SafetensorsWeights, WeightSpec


def spec(
    name: str,
    shape: tuple[int, ...] = (2, 3),
    dtype: torch.dtype = torch.float32,
    aliases: tuple[str, ...] = (),
) -> WeightSpec:
    return WeightSpec(name, aliases, shape, dtype)


@pytest.fixture
def stored() -> Any:
    return {
        "encoder.dense.weight": torch.randn(2, 3),
        "encoder.dense.bias": torch.randn(3),
        "encoder.LayerNorm.gamma": torch.randn(3),
        "count": torch.tensor([1, 2]),
    }


@pytest.fixture
def file(tmp_path: Path, stored: dict[str, torch.Tensor]) -> Any:
    save_file(stored, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_reads_only_what_is_named(file: Path, stored: dict[str, torch.Tensor]) -> None:
    read = SafetensorsWeights(file).read([spec("encoder.dense.weight")])
    assert list(read) == ["encoder.dense.weight"]
    assert torch.equal(read["encoder.dense.weight"], stored["encoder.dense.weight"])


def test_memory_is_aligned(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i) for i in range(1, 9)}
    save_file(tensors, tmp_path / "odd.safetensors")
    specs = [spec(name, tuple(t.shape)) for name, t in tensors.items()]
    for tensor in SafetensorsWeights(tmp_path / "odd.safetensors").read(specs).values():
        assert tensor.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("name", "naming", "found"),
    [
        ("encoder.dense.weight", Naming(), "encoder.dense.weight"),
        ("dense.weight", Naming(base="encoder"), "encoder.dense.weight"),
        ("model.encoder.dense.weight", Naming(wrapper="model."), "encoder.dense.weight"),
        ("model.bert.encoder.dense.weight", Naming("model.", "bert"), "encoder.dense.weight"),
        ("model.dense.weight", Naming("model.", "encoder"), "encoder.dense.weight"),
        ("encoder.LayerNorm.weight", Naming(), "encoder.LayerNorm.gamma"),
        ("model.LayerNorm.weight", Naming("model.", "encoder"), "encoder.LayerNorm.gamma"),
    ],
)
def test_names_are_found_as_checkpoints_spell_them(
    file: Path, stored: dict[str, torch.Tensor], name: str, naming: Naming, found: str
) -> None:
    wanted = [spec(name, tuple(stored[found].shape))]
    weights = SafetensorsWeights(file, naming)
    weights.check(wanted)
    assert torch.equal(weights.read(wanted)[name], stored[found])


def test_a_tied_tensor_is_found_under_its_other_name(
    file: Path, stored: dict[str, torch.Tensor]
) -> None:
    wanted = [spec("head.weight", aliases=("encoder.dense.weight",))]
    read = SafetensorsWeights(file).read(wanted)
    assert torch.equal(read["head.weight"], stored["encoder.dense.weight"])


@pytest.mark.parametrize("method", ["check", "read"])
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (spec("encoder.dense.weights"), ["encoder.dense.weights", "close names there", "bias"]),
        (spec("zzz"), ["no tensor zzz", "no name there is close"]),
        (spec("encoder.dense.weight", (3, 2)), ["shape (2, 3), expected (3, 2)"]),
        (spec("encoder.dense.weight", dtype=torch.bfloat16), ["F32", "torch.bfloat16"]),
    ],
)
def test_what_does_not_fit_is_explained(
    file: Path, wanted: WeightSpec, words: list[str], method: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        getattr(SafetensorsWeights(file), method)([wanted])
    for word in [*words, str(file)]:
        assert word in str(caught.value)


def test_a_cast_is_made_only_when_asked_and_only_between_floats(
    file: Path, stored: dict[str, torch.Tensor]
) -> None:
    wanted = [spec("encoder.dense.weight", dtype=torch.bfloat16)]
    read = SafetensorsWeights(file, cast=True).read(wanted)["encoder.dense.weight"]
    assert torch.equal(read, stored["encoder.dense.weight"].bfloat16())
    with pytest.raises(WeightsError, match="I64"):
        SafetensorsWeights(file, cast=True).check([spec("count", (2,))])


@pytest.mark.parametrize("size", [0, 4, 40, -5])
def test_a_truncated_file_is_named(file: Path, size: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:size])
    with pytest.raises(WeightsError, match="truncated") as caught:
        SafetensorsWeights(file).read([spec("encoder.dense.weight")])
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights at .*gone.safetensors"):
        SafetensorsWeights(tmp_path / "gone.safetensors")


@pytest.fixture
def index(tmp_path: Path) -> Any:
    tensors = {"a": torch.randn(2), "b": torch.randn(3)}
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {n: f"{n}.safetensors" for n in tensors}}))
    return path


def test_shards_are_read_through_their_index(index: Path) -> None:
    read = SafetensorsWeights(index).read([spec("b", (3,)), spec("a", (2,))])
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {"a": (2,), "b": (3,)}


def test_only_the_shards_needed_are_opened(index: Path) -> None:
    (index.parent / "a.safetensors").write_bytes(b"damaged")
    SafetensorsWeights(index).read([spec("b", (3,))])
    with pytest.raises(WeightsError, match=r"a\.safetensors cannot be read"):
        SafetensorsWeights(index).check([spec("a", (2,))])


def test_a_missing_shard_is_named(index: Path) -> None:
    (index.parent / "b.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"b\.safetensors, which does not exist"):
        SafetensorsWeights(index)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none(index: Path, text: str) -> None:
    index.write_text(text)
    with pytest.raises(WeightsError, match="no index of safetensors files"):
        SafetensorsWeights(index)


def test_a_modules_tensors_are_shared() -> None:
    module = nn.Linear(3, 2)
    read = ModuleWeights(module).read([spec("weight")])["weight"]
    assert read.data_ptr() == module.weight.data_ptr()
    assert not read.requires_grad


@pytest.mark.parametrize(
    ("module", "wanted", "message"),
    [
        (nn.Linear(3, 2), spec("wait"), "close names there: weight"),
        (nn.Linear(3, 3), spec("weight"), r"\(3, 3\) torch.float32, expected \(2, 3\)"),
        (nn.Linear(3, 2, device="meta"), spec("weight"), "meta device"),
    ],
)
def test_a_module_that_does_not_fit(module: nn.Module, wanted: WeightSpec, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        ModuleWeights(module).check([wanted])
