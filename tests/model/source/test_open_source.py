"""Models from folders, factories and scripts compute the same results as without pipepar."""

import shutil
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipepar.engine.stage import Stage
from pipepar.errors import InputError, WeightsError
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.heads import MeanPooling
from pipepar.model.source.open_source import from_factory, from_huggingface, from_module
from pipepar.planner.plan_offline import make_plan
from pipepar.tasks.registry import find_task
from tests.helpers.models import Mlp, Tied, run

torch.set_num_threads(1)
transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SMALL),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, pad_token_id=1),
    "mpnet": lambda: transformers.MPNetConfig(**SMALL, pad_token_id=1),
    "distilbert": lambda: transformers.DistilBertConfig(
        dim=32, n_layers=4, n_heads=4, hidden_dim=64, vocab_size=60, max_position_embeddings=40
    ),
}


@pytest.fixture(params=CONFIGS)
def encoder(request: Any) -> Any:
    return request.param


def saved(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, make: Any = None, **kwargs: Any
) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    model = (make or transformers.AutoModel.from_config)(config).to(dtype)
    model.save_pretrained(folder, **kwargs)
    return folder


def batch(size: int, length: int) -> Any:
    mask = torch.ones(size, length, dtype=torch.long)
    for row in range(size):
        mask[row, length - row % length :] = 0
    return {"input_ids": torch.randint(2, 60, (size, length)), "attention_mask": mask}


def copied(bert: tuple[Path, Graph], folder: Path) -> Path:
    shutil.copytree(bert[0], folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Graph]:
    """A folder that tests copy, and the graph of its model."""
    folder = saved(tmp_path_factory.mktemp("bert"), "bert")
    source = from_huggingface(folder, find_task("feature-extraction").head)
    return folder, capture(source.module, (), batch(1, 6))


def assert_stages_equal(
    folder: Path, counts: tuple[int, ...] = (1, 2, 3, 4), graph: Graph | None = None
) -> None:
    reference = MeanPooling(transformers.AutoModel.from_pretrained(folder).eval())
    source = from_huggingface(folder, find_task("feature-extraction").head)
    assert all(parameter.is_meta for parameter in source.module.parameters())
    graph = graph or capture(source.module, (), batch(1, 6))
    calls = [batch(size, length) for size, length in [(1, 6), (2, 6), (3, 11), (6, 3)]]
    with torch.no_grad():
        references = [reference(**inputs) for inputs in calls]
    for count in counts:
        plan = make_plan(graph, count)
        stages = [Stage.load(graph, plan, i, source.weights) for i in range(count)]
        for inputs, expected in zip(calls, references, strict=True):
            found = run(graph, plan, stages, (), inputs)
            assert torch.equal(found, expected)
            assert found.dtype == expected.dtype


def test_encoders_equal_from_pretrained(tmp_path: Path, encoder: str) -> None:
    assert_stages_equal(saved(tmp_path, encoder))


def test_a_bfloat16_folder(tmp_path: Path) -> None:
    assert_stages_equal(saved(tmp_path, "bert", torch.bfloat16), counts=(2,))


def test_a_folder_whose_configuration_names_no_dtype(tmp_path: Path) -> None:
    saved(tmp_path, "bert", torch.bfloat16)
    config = transformers.BertConfig(**SMALL)
    config.dtype = None
    config.save_pretrained(tmp_path)
    assert_stages_equal(tmp_path, counts=(2,))


def test_float16_weights_with_a_float32_configuration(
    tmp_path: Path, bert: tuple[Path, Graph]
) -> None:
    copied(bert, tmp_path)
    file = tmp_path / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(halves, file, metadata={"format": "pt"})
    assert_stages_equal(tmp_path, counts=(2,), graph=bert[1])


def test_shards(tmp_path: Path, bert: tuple[Path, Graph]) -> None:
    saved(tmp_path, "bert", max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_stages_equal(tmp_path, counts=(3,), graph=bert[1])


def test_a_checkpoint_with_a_head_has_the_base_prefix(
    tmp_path: Path, bert: tuple[Path, Graph]
) -> None:
    saved(tmp_path, "bert", make=transformers.BertForMaskedLM)
    assert "bert.embeddings.word_embeddings.weight" in load_file(tmp_path / "model.safetensors")
    assert_stages_equal(tmp_path, counts=(2,), graph=bert[1])


def test_old_names_of_a_layer_norm(tmp_path: Path, bert: tuple[Path, Graph]) -> None:
    copied(bert, tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor + 0.5
        for name, tensor in load_file(file).items()
    }
    save_file(old, file, metadata={"format": "pt"})
    assert_stages_equal(tmp_path, counts=(2,), graph=bert[1])


def test_the_mean_excludes_padding(bert: tuple[Path, Graph]) -> None:
    pooled = MeanPooling(transformers.AutoModel.from_pretrained(bert[0]).eval())
    inputs = batch(2, 6)
    inputs["attention_mask"][:] = torch.tensor([1, 1, 1, 0, 0, 0])
    with torch.no_grad():
        hidden = pooled.model(**inputs).last_hidden_state
        torch.testing.assert_close(pooled(**inputs), hidden[:, :3].mean(1))


def test_a_row_without_tokens_is_zero(bert: tuple[Path, Graph]) -> None:
    pooled = MeanPooling(transformers.AutoModel.from_pretrained(bert[0]).eval())
    inputs = batch(2, 6)
    inputs["attention_mask"][1] = 0
    with torch.no_grad():
        assert torch.equal(pooled(**inputs)[1], torch.zeros(32))


def test_a_text_longer_than_the_positions_is_refused(bert: tuple[Path, Graph]) -> None:
    _, graph = bert
    with pytest.raises(InputError, match="<= 40"):
        graph.flatten_inputs((), batch(2, 41))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), InputError, "no config.json in"),
        (lambda folder: (folder / "config.json").write_text("{}"), InputError, "model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), WeightsError, "no weights at"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
            WeightsError,
            "truncated",
        ),
    ],
)
def test_an_incomplete_folder_is_refused(
    tmp_path: Path,
    change: Any,
    error: type[Exception],
    message: str,
    bert: tuple[Path, Graph],
) -> None:
    change(copied(bert, tmp_path))
    with pytest.raises(error, match=message):
        from_huggingface(tmp_path, find_task("feature-extraction").head).weights.check([])


FACTORIES = """
    import torch
    from torch import nn

    def make():
        return nn.Linear(3, 2)

    def number():
        return 3

    constant = 7
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The name of a module in the working directory."""
    name = f"factories_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(FACTORIES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return name


def test_a_factory_that_makes_the_values(script: str) -> None:
    source = from_factory(f"{script}:make", None)
    graph = capture(source.module, (torch.randn(2, 3),), {})
    stage = Stage.load(graph, make_plan(graph, 1), 0, source.weights)
    assert tuple(stage([torch.randn(4, 3)])[0].shape) == (4, 2)


def test_a_factory_with_weights_takes_no_memory(script: str, tmp_path: Path) -> None:
    values = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    save_file(values, tmp_path / "w.safetensors")
    source = from_factory(f"{script}:make", tmp_path / "w.safetensors")
    assert all(parameter.is_meta for parameter in source.module.parameters())
    graph = capture(source.module, (torch.randn(2, 3),), {})
    stage = Stage.load(graph, make_plan(graph, 1), 0, source.weights)
    x = torch.randn(4, 3)
    assert torch.equal(stage([x])[0], nn.functional.linear(x, values["weight"], values["bias"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}", "expected package.module:name of a function"),
        ("{}:", "expected package.module:name of a function"),
        ("no_such_module_here:make", "no module 'no_such_module_here'"),
        ("{}:nothing", "no 'nothing' in module"),
        ("{}:constant", "is a int, expected a function"),
        ("{}:number", "returned a int, expected an nn.Module"),
    ],
)
def test_a_wrong_factory_is_refused(script: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_factory(name.format(script), None)


def test_a_module_is_never_modified() -> None:
    module = Tied().train()
    before = dict(module.named_parameters(remove_duplicate=False))
    source = from_module(module)
    assert module.training
    assert not source.module.training
    after = dict(module.named_parameters(remove_duplicate=False))
    assert all(before[name] is after[name] and after[name].requires_grad for name in before)
    assert all(parameter.is_meta for parameter in source.module.parameters())
    after = dict(source.module.named_parameters(remove_duplicate=False))
    assert after["head.weight"] is after["embed.weight"]


def test_an_object_that_is_not_a_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"found a function, expected an nn\.Module"):
        from_module(test_an_object_that_is_not_a_module_is_refused)  # type: ignore[arg-type]


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = Mlp()
    module.register_module("lock", Locked())
    with pytest.raises(InputError, match="cannot be copied"):
        from_module(module)
