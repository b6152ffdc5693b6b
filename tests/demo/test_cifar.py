"""The image demo: its model, and the conversion of Keras's weights. Needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from demo import from_keras
from demo.cifar import CLASSES, convolution, dense, make
from demo.fetch_images import unpacked
from demo.packages import Package, npm_download
from demo.show_images import picture

Array = np.ndarray[Any, Any]


def test_the_network_has_as_many_parameters_as_the_original() -> None:
    model = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == 968_394
    assert not any(module.training for module in model.modules())


def test_the_network_accepts_uint8_images() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    model = make()
    with torch.no_grad():
        scores = model(images)
        assert torch.equal(scores, model(images.float()))
    assert scores.dtype == torch.float32
    assert scores.shape == (3, len(CLASSES))


def test_one_pixel_is_left_where_the_network_flattens() -> None:
    # With more pixels, the rows of the next dense kernel would need another order (channels last).
    model = make()
    end = next(i for i, module in enumerate(model) if isinstance(module, nn.Flatten))
    assert model[:end](torch.zeros(2, 3, 32, 32)).shape == (2, 64, 1, 1)


def test_converted_weights_give_the_results_of_keras() -> None:
    rng = np.random.default_rng(0)
    layers: list[from_keras.Weights] = [
        {"kernel": rng.standard_normal((3, 3, 2, 4)), "bias": rng.standard_normal(4)},
        norm(rng, 4),
        {"kernel": rng.standard_normal((3, 3, 4, 5)), "bias": rng.standard_normal(5)},
        norm(rng, 5),
        {"kernel": rng.standard_normal((5, 3)), "bias": rng.standard_normal(3)},
    ]
    model = nn.Sequential(
        *convolution(2, 4),
        nn.MaxPool2d(2),
        *convolution(4, 5),
        nn.Flatten(),
        *dense(5, 3),
    )
    model.double().eval()
    from_keras.load(model, layers)

    images = rng.uniform(0, 255, (6, 8, 8, 2))  # channels last, as Keras has them
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    first, first_norm, second, second_norm, last = layers
    x = normed(convolved(images, first), first_norm)  # [6, 6, 6, 4]
    x = x.reshape(6, 3, 2, 3, 2, 4).max((2, 4))
    x = normed(convolved(x, second), second_norm).reshape(6, 5)
    expected = np.maximum(x @ last["kernel"] + last["bias"], 0)
    assert 0 < (expected > 0).mean() < 1
    # NumPy adds in another order.
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_layers_that_do_not_match_are_an_error() -> None:
    weights = {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}
    with pytest.raises(ValueError, match="shorter"):
        from_keras.load(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), [weights])
    with pytest.raises(RuntimeError, match="size mismatch"):
        from_keras.load(nn.Linear(4, 2), [weights])


def test_layers_are_read_in_the_order_of_the_model(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = ["second", "flat", "first"]
        group.create_group("flat").attrs["weight_names"] = []
        for value, name in enumerate(("first", "second")):
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [f"{name}/kernel:0"]
            layer[f"{name}/kernel:0"] = np.full((2, 3), value)
    first, second = from_keras.read(path)
    assert np.array_equal(first["kernel"], np.full((2, 3), 1))
    assert np.array_equal(second["kernel"], np.full((2, 3), 0))


def test_a_picture_of_all_images_is_unpacked() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    lines = [[image[:, y, x] for y in range(32) for x in range(32)] for image in images]
    assert np.array_equal(unpacked(Image.fromarray(np.array(lines))), images)


def test_a_character_shows_two_pixels() -> None:
    image = np.zeros((3, 4, 2), dtype=np.uint8)
    image[:, 2, 1] = 255, 128, 0
    image[:, 3, 1] = 1, 2, 3
    shown = picture(image)
    assert shown.plain == "▀▀\n▀▀"
    assert str(shown.spans[-1].style) == "#ff8000 on #010203"


def test_missing_npm_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"npm is not on PATH; .* Install Node\.js"):
        npm_download(Package("package@1.0", "0" * 64), tmp_path)


@pytest.mark.parametrize(
    ("sha256", "message"),
    [("0" * 64, "has sha256 .*; expected 000"), (None, "could not be downloaded")],
)
def test_a_download_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sha256: str | None, message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{'exit 1' if sha256 is None else f'echo other > {folder}/file'}\n")
    npm.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit, match=message):
        npm_download(Package("package@1.0", sha256 or ""), folder)


def norm(rng: np.random.Generator, channels: int) -> from_keras.Weights:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {name: rng.uniform(0.5, 2, channels) for name in names}


def convolved(images: Array, layer: from_keras.Weights) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    # windows: [B, H, W, in, 3, 3], kernel: [3, 3, in, out]
    summed = np.einsum("bhwcij,ijco->bhwo", windows, layer["kernel"])
    relu: Array = np.maximum(summed + layer["bias"], 0)
    return relu


def normed(images: Array, layer: from_keras.Weights) -> Array:
    deviation = np.sqrt(layer["moving_variance"] + 1e-3)
    scaled: Array = (images - layer["moving_mean"]) / deviation
    return scaled * layer["gamma"] + layer["beta"]
