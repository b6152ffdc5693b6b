"""Weights that only rank 0 has reach every stage; each stage gets only its own."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI
from safetensors.torch import load_file, save_file
from torch import nn

import pipepar
from pipepar.comm.world import World
from pipepar.engine.assembly import assemble, capture_together
from pipepar.engine.shared_source import SharedSource
from pipepar.errors import PipeparError, WeightsError
from pipepar.jobs.shared_folder import replica
from pipepar.model.source.open_source import from_factory
from pipepar.model.weights.checkpoint import TensorFiles
from pipepar.pipeline import Pipeline
from pipepar.plan.placement import Ends
from pipepar.planner.plan_job import agree_on_plan
from pipepar.planner.plan_request import PlanRequest
from tests.helpers.rank_fixtures import on_ranks
from tests.helpers.run_contexts import run_on_hosts

pytestmark = [pytest.mark.mpi, on_ranks(1, 2, 3)]

ROOT = MPI.COMM_WORLD.rank == 0


class Net(nn.Module):
    """Tied layers, statistics, channels-last kernels and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.convolutions[5].weight = self.convolutions[0].weight
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("shift", torch.arange(4.0).view(4, 1, 1), persistent=False)
        for convolution in self.convolutions:
            weight = convolution.weight
            assert isinstance(weight, torch.Tensor)
            weight.data = weight.data.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> Any:
        for convolution in self.convolutions:
            x = torch.relu(convolution(x)) + x
        return {"y": self.norm(x) + self.shift}


def net() -> nn.Module:
    torch.manual_seed(MPI.COMM_WORLD.rank)  # each rank makes other values
    model = Net().eval()
    for buffer in model.norm.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model


def shared(folder: Path) -> Path:
    """Return the folder of rank 0, on every rank."""
    return Path(MPI.COMM_WORLD.bcast(str(folder)))


def test_a_model_with_values_on_rank_0_only(tmp_path: Path) -> None:
    with pipepar.values_on_root():
        model = net()
    assert all(parameter.is_meta != ROOT for parameter in model.parameters())
    x = torch.randn(6, 4, 5, 5)
    with Pipeline(model, example_args=(x,), micro_batch=3) as pipe:
        y = pipe(x)
        stage = pipe._assembly.stage
    assert stage is not None
    if ROOT:
        with torch.no_grad():
            expected = torch.cat([model(part)["y"] for part in (x[:3], x[3:])])
        assert torch.equal(y["y"], expected)
        own = {parameter.data_ptr() for parameter in model.parameters()}
        mine = {parameter.data_ptr() for parameter in stage._module.parameters()}
        assert mine <= own  # shared with the script's model, not copied
    held = sum(tensor.nbytes for tensor in set(stage._module.parameters()))
    assert held <= stage.weight_bytes


def test_values_on_no_rank() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    with pytest.raises(PipeparError, match="on meta on rank 0"):
        Pipeline(model, example_args=(torch.randn(2, 4),))


class Noise(nn.Module):
    """Buffers that no checkpoint holds: random, and computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.register_buffer("perm", torch.randperm(4), persistent=False)
        bias = next(self.layers[0].parameters()).sum(1)
        self.register_buffer("twice", bias.detach() * 2, persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x[:, torch.as_tensor(self.perm)] + torch.as_tensor(self.twice)


def noise() -> nn.Module:
    return Noise().eval()


@pytest.mark.parametrize("named", [False, True])
def test_buffers_that_are_correct_on_rank_0_only(named: bool) -> None:
    with pipepar.values_on_root():
        model = noise()
    x = torch.randn(3, 4)
    given = f"{__name__}:noise" if named else model
    with Pipeline(given, example_args=(x,), micro_batch=3) as pipe:
        found = pipe(x)
    if ROOT:
        with torch.no_grad():
            assert torch.equal(found, model(x))


def test_a_pipeline_inside_values_on_root() -> None:
    if MPI.COMM_WORLD.size == 1:
        pytest.skip("one rank builds the model with its values")
    with pipepar.values_on_root():
        model = noise()
        with pytest.raises(PipeparError, match=r"inside values_on_root\(\)"):
            Pipeline(model, example_args=(torch.randn(2, 4),))


def test_a_stage_that_cannot_be_cut_ends_every_rank(
    world: World, tmp_path: Path, monkeypatch: Any
) -> None:
    path = weights_file(tmp_path)
    if world.rank == world.size - 1:
        monkeypatch.setattr("pipepar.engine.stage.extract", _no_memory)
    with pytest.raises((MemoryError, PipeparError), match="no memory"):
        load_from_root(world, path)


def _no_memory(*args: Any) -> Any:
    raise MemoryError("no memory")


def load_from_root(world: World, path: Path) -> Any:
    source = from_factory("tests.helpers.factories:mlp", path)
    shared, run = SharedSource(source, from_root=True), run_on_hosts(world)
    graph = capture_together(run, shared, (torch.randn(2, 4),), {})
    agreed = agree_on_plan(run, graph, PlanRequest(2, 2, 1))
    assembly = assemble(run, shared, graph, agreed, Ends.of_script())
    assembly.wiring.close()
    return assembly.stage


def weights_file(folder: Path) -> Path:
    """Write a checkpoint on rank 0; the path on other ranks does not exist."""
    if not ROOT:
        return Path("/nowhere/w.safetensors")
    tensors = {f"{i}.{k}": torch.randn(*s) for i in range(4) for k, s in SHAPES.items()}
    save_file(tensors, folder / "w.safetensors")
    return folder / "w.safetensors"


SHAPES = {"weight": (4, 4), "bias": (4,)}


def test_a_checkpoint_that_only_rank_0_sees(world: World, tmp_path: Path) -> None:
    path = weights_file(tmp_path)
    stage = load_from_root(world, path)
    expected = MPI.COMM_WORLD.bcast(load_file(path) if ROOT else None)
    found = dict(stage._module.named_parameters())
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name])


def test_a_damaged_checkpoint_is_reported_by_rank_0(world: World, tmp_path: Path) -> None:
    path = weights_file(tmp_path)
    if ROOT:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PipeparError) as caught:
        load_from_root(world, path)
    assert isinstance(caught.value, WeightsError) == ROOT
    assert "truncated" in str(caught.value)


def test_a_read_error_ends_every_rank(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    path, read = weights_file(tmp_path), TensorFiles.read

    def failing(files: TensorFiles, stored: Any) -> torch.Tensor:
        if stored.name == "1.weight":
            raise WeightsError("the disk is gone")
        return read(files, stored)

    monkeypatch.setattr(TensorFiles, "read", failing)
    with pytest.raises(PipeparError) as caught:
        load_from_root(world, path)
    if ROOT:
        assert str(caught.value) == "the disk is gone"


@pytest.mark.parametrize(
    "name",
    [pytest.param("bert", marks=on_ranks(2)), pytest.param("mixtral", marks=on_ranks(3))],
)
def test_each_rank_reads_its_part_of_a_folder(name: str, tmp_path: Path) -> None:
    import transformers as hf

    folder = shared(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "vocab_size": 30}
    if ROOT:
        torch.manual_seed(0)
        kinds: Any = {
            "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**small)),  # type: ignore[arg-type]
            "mixtral": lambda: hf.MixtralForCausalLM(
                hf.MixtralConfig(**small, num_key_value_heads=2, num_local_experts=3)  # type: ignore[arg-type]
            ),
        }
        kinds[name]().save_pretrained(folder)
    MPI.COMM_WORLD.Barrier()
    inputs = {"input_ids": torch.arange(24).view(4, 6), "attention_mask": torch.ones(4, 6).long()}
    with Pipeline(str(folder), example_kwargs=inputs, micro_batch=2) as pipe:
        found = pipe(**inputs)
    if ROOT:
        loaded: Any = {"bert": hf.BertForMaskedLM, "mixtral": hf.MixtralForCausalLM}[name]
        model = loaded.from_pretrained(folder).eval()
        with torch.no_grad():
            parts = [model(**{k: v[at : at + 2] for k, v in inputs.items()}) for at in (0, 2)]
        assert type(found) is type(parts[0])
        assert torch.equal(found.logits, torch.cat([part.logits for part in parts]))


def test_a_folder_that_only_rank_0_sees(world: World, tmp_path: Path) -> None:
    import transformers as hf

    folder = tmp_path / "bert"
    if ROOT:
        config = hf.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        model = hf.BertModel(config).bfloat16()
        model.save_pretrained(folder)
        config.dtype = None
        config.save_pretrained(folder)
        (folder / "vocab.txt").write_text("a\nb\n")
    with replica(world, folder) as seen:
        assert (seen == folder) == ROOT
        assert (seen / "vocab.txt").read_text() == "a\nb\n"
        assert (seen / "model.safetensors").exists() == ROOT
        found = hf.AutoConfig.from_pretrained(seen)
        assert ROOT or found.dtype == torch.bfloat16
    assert seen.exists() == ROOT
    shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(PipeparError, match=r"no config\.json in"), replica(world, folder):
        pass


def test_an_empty_list_of_layers_is_refused() -> None:
    with pytest.raises(PipeparError, match="with at least one"):
        Pipeline(layers=[], example_args=(torch.randn(2, 2),))


@pytest.mark.parametrize("given", [{}, {"model": nn.Linear(2, 2), "layers": [nn.Linear(2, 2)]}])
def test_exactly_one_of_model_and_layers_is_required(given: Any) -> None:
    with pytest.raises(PipeparError, match=r"a model (nor|and) layers, expected one"):
        Pipeline(**given, example_args=(torch.randn(2, 2),))


def test_layers_instead_of_a_model() -> None:
    torch.manual_seed(3)
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(MPI.COMM_WORLD.size + 1))
    x = torch.randn(5, 4)
    with Pipeline(layers=layers, example_args=(x,), micro_batch=5) as pipe:
        y = pipe(x)
    if ROOT:
        with torch.no_grad():
            assert torch.equal(y, nn.Sequential(*layers)(x))
