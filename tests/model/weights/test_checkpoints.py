"""Checkpoints whose tensors transformers renames, splits or fuses: a stage reads only its part."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipepar.engine.stage import Stage, weights_of
from pipepar.errors import WeightsError
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import Source, from_huggingface
from pipepar.model.weights.checkpoint import TensorFiles
from pipepar.model.weights.weight_source import WeightSpec
from pipepar.planner.plan_offline import make_plan
from pipepar.tasks.registry import find_task
from tests.helpers.models import run
from tests.helpers.pretrained import CASES, Case, saved, tokens

pytestmark = pytest.mark.long(40)

torch.set_num_threads(1)

STAGES = 2


class Prepared(NamedTuple):
    """A case's folder and the graph of its model, made once; no test modifies them."""

    case: Case
    folder: Path
    source: Source
    graph: Graph


ByName: TypeAlias = Callable[[str], Prepared]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> ByName:
    @functools.cache
    def of(name: str) -> Prepared:
        case = CASES[name]
        folder = saved(tmp_path_factory.mktemp("folder"), case)
        source = from_huggingface(folder, find_task(case.task).head)
        return Prepared(case, folder, source, capture(source.module, (), case.inputs()))

    return of


def copied(prepared: Prepared, folder: Path) -> Path:
    """Copy the folder, so that a test can change it."""
    shutil.copytree(prepared.folder, folder, dirs_exist_ok=True)
    return folder


def assert_equal_to_from_pretrained(
    folder: Path, case: Case, own: tuple[Source, Graph] | None = None
) -> Source:
    options = {"use_cache": False} if hasattr(case.config(), "use_cache") else {}
    model = case.model.from_pretrained(folder, **options).eval()  # stages have no cache either
    source = own[0] if own else from_huggingface(folder, find_task(case.task).head)
    assert all(parameter.is_meta for parameter in source.module.parameters())
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in case.inputs().items()
    }
    graph = own[1] if own else capture(source.module, (), inputs)
    plan = make_plan(graph, STAGES)
    stages = [Stage.load(graph, plan, index, source.weights) for index in range(STAGES)]
    found = run(graph, plan, stages, (), inputs)
    with torch.no_grad():
        expected = model(**inputs)
    if case.task == "raw":
        assert type(found) is type(expected)
        assert list(found) == list(expected)
    assert torch.equal(found["logits"], expected["logits"])
    return source


@pytest.mark.parametrize("name", CASES)
def test_a_folder_equals_from_pretrained(name: str, prepared: ByName) -> None:
    case, folder, source, graph = prepared(name)
    assert_equal_to_from_pretrained(folder, case, (source, graph))


@pytest.mark.parametrize("name", ["llama, tied", "mixtral, fused experts"])
def test_shards(name: str, prepared: ByName, tmp_path: Path) -> None:
    case = CASES[name]
    folder = saved(tmp_path, case, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    source = from_huggingface(folder, find_task(case.task).head)
    assert_equal_to_from_pretrained(folder, case, (source, prepared(name).graph))


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_with_torch_files(shards: int, prepared: ByName, tmp_path: Path) -> None:
    made = prepared("bert, tied")
    folder = copied(made, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [dict(list(tensors.items())[at::shards]) for at in range(shards)]
    names = [f"pytorch_model-{at}.bin" if shards > 1 else "pytorch_model.bin" for at in range(2)]
    for part, name in zip(parts, names, strict=False):
        torch.save(part, folder / name)
    if shards > 1:
        where = {key: name for part, name in zip(parts, names, strict=True) for key in part}
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    source = from_huggingface(folder, find_task(made.case.task).head)
    assert_equal_to_from_pretrained(folder, made.case, (source, made.graph))


def test_parameters_that_need_float32_stay_in_float32(tmp_path: Path) -> None:
    source = assert_equal_to_from_pretrained(
        saved(tmp_path, CASES["t5"], torch.float16), CASES["t5"]
    )
    dtypes = {parameter.dtype for parameter in source.module.parameters()}
    assert dtypes == {torch.float16, torch.float32}


def test_bfloat16(tmp_path: Path) -> None:
    case = CASES["llama"]
    assert_equal_to_from_pretrained(saved(tmp_path, case, torch.bfloat16), case)


@pytest.mark.parametrize("name", CASES)
def test_each_stage_reads_its_own_bytes_once(name: str, prepared: ByName, monkeypatch: Any) -> None:
    _, _, source, graph = prepared(name)
    read: list[tuple[Path, int]] = []
    sizes: list[int] = []
    plain = TensorFiles.read

    def watched(files: TensorFiles, stored: Any) -> torch.Tensor:
        read.append((stored.file, stored.offset))
        sizes.append(stored.nbytes)
        return plain(files, stored)

    monkeypatch.setattr(TensorFiles, "read", watched)
    plan = make_plan(graph, STAGES)
    for stage in plan.stages:
        read.clear()
        sizes.clear()
        list(source.weights.read(weights_of(graph, stage)))
        assert len(set(read)) == len(read)
        if "experts" not in str(graph.weights):  # their parts are interleaved
            assert read == sorted(read)
        assert sum(sizes) == stage.weight_bytes


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


EXPERT = "model.layers.0.block_sparse_moe.experts.3.w1.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", lambda t: t.pop("model.norm.weight"), r"no tensor model\.norm\.weight in "),
        (
            "llama",
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(64, 32)}),
            r"model\.safetensors contains model\.layers\.2\.mlp\.up_proj\.weight, which the model",
        ),
        (
            "bert, tied",
            lambda t: t.update({"bert.encoder.layer.0.extra": torch.ones(1)}),
            r"safetensors contains bert\.encoder\.layer\.0\.extra, which the model does not have",
        ),
        (
            "llama, tied",
            lambda t: t.update({"lm_head.weight": torch.ones(60, 32)}),
            r"are one tensor in the model, but .*contains two that differ",
        ),
        (
            "llama",
            lambda t: t.update({"model.norm.weight": torch.ones(3)}),
            r"model\.norm\.weight in .*safetensors has shape \(3,\), expected \(32,\)",
        ),
        ("mixtral, fused experts", lambda t: t.pop(EXPERT), r"mlp\.experts\.gate_up_proj.* cannot"),
        (
            "mixtral, fused experts",
            lambda t: t.update({EXPERT: torch.ones(3, 2)}),
            r"mlp\.experts\.gate_up_proj.* cannot be made from .*experts\.0\.w1.* and 19 more in",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    name: str, change: Any, message: str, prepared: ByName, tmp_path: Path
) -> None:
    made = prepared(name)
    folder = copied(made, tmp_path)
    rewritten(folder, change)
    source = from_huggingface(folder, find_task(made.case.task).head)
    with pytest.raises(WeightsError, match=message):
        checked_and_read(source, list(made.graph.weights.values()))


def checked_and_read(source: Source, specs: list[WeightSpec]) -> None:
    source.weights.check(specs)
    list(source.weights.read(specs))


def test_other_heads_and_obsolete_buffers_are_not_surplus(prepared: ByName, tmp_path: Path) -> None:
    folder = copied(prepared("bert, tied"), tmp_path)
    older = {
        "bert.embeddings.position_ids": torch.arange(512)[None],
        "bert.pooler.dense.weight": torch.ones(32, 32),
        "cls.seq_relationship.weight": torch.ones(2, 32),
    }
    rewritten(folder, lambda tensors: tensors.update(older))
    for task in ("feature-extraction", "fill-mask"):
        source = from_huggingface(folder, find_task(task).head)
        graph = capture(source.module, (), tokens())
        source.weights.check(list(graph.weights.values()))


def test_tied_tensors_may_be_stored_twice(prepared: ByName, tmp_path: Path) -> None:
    made = prepared("llama, tied")
    folder = copied(made, tmp_path)

    def store_twice(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewritten(folder, store_twice)
    source = from_huggingface(folder, find_task(made.case.task).head)
    assert_equal_to_from_pretrained(folder, made.case, (source, made.graph))


def test_a_head_that_the_checkpoint_lacks_is_missing(prepared: ByName) -> None:
    source = from_huggingface(prepared("bert, tied").folder, find_task("text-classification").head)
    graph = capture(source.module, (), tokens())
    with pytest.raises(WeightsError, match=r"no tensor model\.(bert\.pooler|classifier)"):
        source.weights.check(list(graph.weights.values()))
