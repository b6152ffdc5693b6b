"""OfflinePlan without an input file and without weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.errors import InputError
from pipepar.model.capture.capture import capture
from pipepar.model.source.made_up_inputs import picture_example, shaped_example, text_example
from pipepar.model.split.crossing import cut_table
from pipepar.plan.plan import Plan
from tests.helpers.folders import picture_folder, text_folder
from tests.helpers.jobs.command import MLP, pipepar

pytestmark = pytest.mark.long(30)


def described(example: Any) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = example
    return (
        [(tuple(tensor.shape), tensor.dtype) for tensor in args],
        {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in kwargs.items()},
    )


def test_shapes_become_arguments() -> None:
    args, kwargs = described(shaped_example(["2x512", "y=2x3x8x9:int64", "7:bool"]))
    assert args == [((2, 512), torch.float32), ((7,), torch.bool)]
    assert kwargs == {"y": ((2, 3, 8, 9), torch.int64)}


@pytest.mark.parametrize(
    "shape",
    ["", "x", "2x", "x2", "0x4", "-2x4", "2,4", "2x4:", "2x4:float", "2x4:nn", "=2", "a-b=2"],
)
def test_an_invalid_shape_is_refused(shape: str) -> None:
    if shape == "2x4:float":  # torch.float is a dtype by another name
        assert described(shaped_example([shape]))[0] == [((2, 4), torch.float32)]
        return
    with pytest.raises(InputError, match=r"cannot be read, expected \[NAME=\]SIZExSIZE"):
        shaped_example([shape])


def test_a_duplicate_name_is_refused() -> None:
    with pytest.raises(InputError, match="found a twice"):
        shaped_example(["a=2x4", "b=2", "a=2x4"])


def test_example_tokens_from_a_configuration() -> None:
    from transformers import BertConfig, T5Config

    ids = ((2, 16), torch.int64)
    names = ("input_ids", "token_type_ids")
    small = BertConfig(max_position_embeddings=16)
    assert described(text_example(small, names))[1] == {"input_ids": ids, "token_type_ids": ids}
    large = described(text_example(BertConfig(max_position_embeddings=4096)))[1]
    assert large == dict.fromkeys(("input_ids", "attention_mask"), ((2, 128), torch.int64))
    assert list(described(text_example(T5Config()))[1]) == [
        *("input_ids", "attention_mask", "decoder_input_ids")
    ]


def test_example_pictures_from_a_configuration() -> None:
    from transformers import ResNetConfig, ViTConfig

    def size(config: Any) -> Any:
        return described(picture_example(config, torch.bfloat16))[1]["pixel_values"]

    assert size(ViTConfig(image_size=32, num_channels=1)) == ((2, 1, 32, 32), torch.bfloat16)
    assert size(ViTConfig(image_size=[32, 48])) == ((2, 3, 32, 48), torch.bfloat16)
    assert size(ResNetConfig()) == ((2, 3, 224, 224), torch.bfloat16)


def test_a_configuration_without_input_sizes_is_refused() -> None:
    from transformers import CLIPConfig, ViTConfig

    with pytest.raises(InputError, match="a vit model does not say what tokens look like"):
        text_example(ViTConfig())
    with pytest.raises(InputError, match="a clip model does not say what pictures look like"):
        picture_example(CLIPConfig(), torch.float32)


def plan_of(tmp_path: Path, model: object, *options: object) -> Plan:
    path = tmp_path / "plan.json"
    status, output = pipepar("plan", model, "-o", path, *options)
    assert status == 0, output
    return Plan.from_json(path.read_text())


@pytest.mark.parametrize(
    ("count", "stages"), [(12, 4), pytest.param(100, 16, marks=pytest.mark.full)]
)
def test_many_layers_from_a_configuration_only(tmp_path: Path, count: int, stages: int) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=16,
        num_hidden_layers=count,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        dtype="bfloat16",
    ).save_pretrained(tmp_path / "llama")
    assert [file.name for file in (tmp_path / "llama").iterdir()] == ["config.json"]
    plan = plan_of(tmp_path, tmp_path / "llama", "--stages", stages)
    layers = [
        {n.split("layers.")[1].split(".")[0] for n in s.weights if "layers." in n}
        for s in plan.stages
    ]
    assert set.union(*layers) == {str(number) for number in range(count)}
    # The first and last layer of a stage may be in two stages.
    assert all(count // stages <= len(owned) <= count // stages + 2 for owned in layers)
    attention, mlp, norms = 16 * (16 + 8 + 8 + 16), 3 * 16 * 32, 2 * 16
    expected = 40 * 16 + count * (attention + mlp + norms) + 16
    assert sum(stage.weight_bytes for stage in plan.stages) == 2 * expected
    assert max(s.flops for s in plan.stages) < 1.1 * sum(s.flops for s in plan.stages) / stages
    assert plan.inputs == ("input_ids", "attention_mask")


def test_a_made_up_example_gives_the_graph_of_the_run(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertModel")
    texts = tmp_path / "in.txt"
    texts.write_text("the quick fox\na dog\nover\n")
    made_up = plan_of(tmp_path, folder, "--stages", 2)
    real = plan_of(tmp_path, folder, "--stages", 2, "--input", texts)
    assert made_up.inputs == ("input_ids", "token_type_ids", "attention_mask")
    assert made_up.model == real.model
    plan_of(tmp_path, folder, "--stages", 1)
    out = tmp_path / "out.npy"
    status, output = pipepar("run", folder, texts, out, "--plan", tmp_path / "plan.json")
    assert status == 0, output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_model_needs_no_input(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = picture_folder(tmp_path / "vit", dtype)
    plan = plan_of(tmp_path, folder, "--stages", 2, "--task", "image-classification")
    assert plan.inputs == ("pixel_values",)
    (folder / "model.safetensors").unlink()
    bare = plan_of(tmp_path, folder, "--stages", 2, "--task", "image-classification")
    assert bare == plan


def test_an_encoder_decoder_can_be_planned(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dtype="float32"
    ).save_pretrained(tmp_path / "t5")
    plan = plan_of(tmp_path, tmp_path / "t5", "--stages", 2)
    assert plan.inputs == ("input_ids", "attention_mask", "decoder_input_ids")


def test_a_configuration_without_a_dtype_uses_the_default(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertModel")
    full = plan_of(tmp_path, folder, "--stages", 2)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("dtype") == "float32"
    (folder / "config.json").write_text(json.dumps(config))
    assert plan_of(tmp_path, folder, "--stages", 2) == full


def test_a_shape_replaces_an_input(tmp_path: Path, rows: Path) -> None:
    shaped = plan_of(tmp_path, MLP, "--stages", 2, "--shape", "44x4")
    plain = plan_of(tmp_path, MLP, "--stages", 2, "--input", rows)
    assert sum(s.flops for s in shaped.stages) == 4 * sum(s.flops for s in plain.stages)
    assert shaped.model == plain.model


def test_a_factory_needs_a_shape_or_an_input() -> None:
    status, output = pipepar("plan", MLP, "--stages", 2)
    assert status == 1
    assert "found neither --input nor --shape" in output
    assert "give --shape SIZExSIZE:DTYPE for each input" in output


def test_the_command_line_refuses_an_invalid_shape() -> None:
    status, output = pipepar("plan", MLP, "--stages", 2, "--shape", "2xfour")
    assert status == 1
    assert "--shape 2xfour cannot be read" in output


def test_an_audio_model_needs_a_shape(tmp_path: Path) -> None:
    from transformers import Wav2Vec2Config

    config = Wav2Vec2Config(num_hidden_layers=1, dtype="float32", architectures=["Wav2Vec2Model"])
    config.save_pretrained(tmp_path / "sound")
    status, output = pipepar("plan", tmp_path / "sound", "--stages", 2, "--task", "raw")
    assert status == 1
    assert "takes input_values" in output
    assert "give --shape input_values=SIZExSIZE" in output


def test_experts_are_counted_as_work() -> None:
    from transformers import MixtralConfig, MixtralModel

    width, inner, batch, length, chosen = 16, 32, 2, 128, 2
    make_config: Any = MixtralConfig
    config = make_config(
        hidden_size=width,
        num_hidden_layers=1,
        intermediate_size=inner,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        num_local_experts=4,
        num_experts_per_tok=chosen,
        experts_implementation="grouped_mm",
    )
    args, kwargs = text_example(config)
    model: Any = MixtralModel(config)
    graph = capture(model.eval(), args, {**kwargs, "use_cache": False})
    flops = [
        cost
        for node, cost in zip(graph.nodes, cut_table(graph).flops, strict=True)
        if "grouped_mm" in str(node.target)
    ]
    rows = chosen * batch * length
    assert flops == [2 * rows * width * 2 * inner, 2 * rows * inner * width]


class ByColumn(nn.Module):
    """Two experts, each for some of the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 16, 32).bfloat16())

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch._grouped_mm(self.experts, x.t(), offs=ends)


def test_experts_over_columns_are_counted_as_work() -> None:
    given = torch.randn(8, 32).bfloat16(), torch.tensor([3, 8], dtype=torch.int32)
    graph = capture(ByColumn().eval(), given, {})
    assert cut_table(graph).flops[-1] == 2 * 8 * 32 * 16  # one expert for each column
