"""--dtype: weights and floating-point samples are cast as torch would cast them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipepar.plan.plan import Plan
from tests.helpers import factories
from tests.helpers.jobs.command import MLP, pipepar


@pytest.mark.parametrize("stored", [False, True])
def test_a_factory_in_bfloat16(rows: Path, tmp_path: Path, stored: bool) -> None:
    output, weights = tmp_path / "out.safetensors", tmp_path / "w.safetensors"
    save_file(factories.mlp().state_dict(), weights)
    options = ["--weights", weights] if stored else []
    status, text = pipepar("run", MLP, rows, output, "--dtype", "bfloat16", *options)
    assert status == 0, text
    x = torch.from_numpy(np.load(rows)).bfloat16()
    with torch.no_grad():
        expected = factories.mlp().bfloat16()(x)
    assert torch.equal(load_file(output)["output"], expected)


def test_a_folder_in_another_dtype_than_its_own(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = ViTConfig(**small, num_attention_heads=2, image_size=32)  # type: ignore[arg-type]
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ["--task", "image-classification", "--dtype", "bfloat16"]
    output = tmp_path / "out.safetensors"
    status, text = pipepar("run", tmp_path / "vit", tmp_path / "x.npy", output, *options)
    assert status == 0, text
    model = ViTForImageClassification.from_pretrained(tmp_path / "vit", dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(torch.from_numpy(x).bfloat16()).logits
    assert torch.equal(load_file(output)["logits"], expected)


def test_an_exported_program_keeps_its_own(rows: Path, tmp_path: Path) -> None:
    x = (torch.from_numpy(np.load(rows)),)
    torch.export.save(torch.export.export(factories.mlp(), x), tmp_path / "m.pt2")
    output = tmp_path / "out.npy"
    status, text = pipepar("run", tmp_path / "m.pt2", rows, output, "--dtype", "float16")
    assert status == 1
    assert "computes in the dtype that it was exported with" in text
    status, text = pipepar("run", tmp_path / "m.pt2", rows, output)
    assert status == 0, text
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(np.load(output)), factories.mlp()(*x))


@pytest.mark.parametrize("example", ["--input", "--shape"])
def test_a_plan_for_another_dtype(rows: Path, tmp_path: Path, example: str) -> None:
    plan, result = tmp_path / "plan.json", tmp_path / "out.safetensors"
    given = (example, rows if example == "--input" else "2x4")
    status, output = pipepar(
        *("plan", MLP, "--stages", 1, *given, "--dtype", "bfloat16", "-o", plan)
    )
    assert status == 0, output
    assert sum(stage.weight_bytes for stage in Plan.from_json(plan.read_text()).stages) == 2 * 80
    status, output = pipepar("run", MLP, rows, result, "--plan", plan, "--dtype", "bfloat16")
    assert status == 0, output
    status, output = pipepar("run", MLP, rows, result, "--plan", plan)
    assert status == 1
    assert "the plan does not fit" in output
