"""Look at what the network saw: ``python -m demo.show_images DIR PREDICTIONS.jsonl``.

DIR is what demo.fetch_images filled, PREDICTIONS.jsonl what pipepar made of its images.npy: a line
an image, with the label and its score. Shown are the first images, and the mistakes the network was
surest of.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from demo.cifar import CLASSES

GAP = 2
"""Columns between two images."""


@dataclass(frozen=True)
class Prediction:
    """What the network says about one image, and what is on it."""

    image: np.ndarray[Any, Any]
    """uint8 [3, 32, 32]."""
    label: str
    score: float
    """How sure the network is, 0 to 1."""
    truth: str


def main() -> None:
    """Show two rows of images, as many as fit."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m demo.show_images DIR PREDICTIONS.jsonl")
    predictions = read(Path(sys.argv[1]), Path(sys.argv[2]))
    console = Console()
    if console.color_system is None:
        return  # half-blocks without colours are no picture
    across = max(1, console.width // (predictions[0].image.shape[-1] + GAP))
    mistakes = [found for found in predictions if found.label != found.truth]
    mistakes.sort(key=lambda found: found.score, reverse=True)
    console.print("\n[bold]the first images[/]\n", row(predictions[:across]))
    console.print("\n[bold]the surest mistakes[/]\n", row(mistakes[:across]))


def read(folder: Path, path: Path) -> list[Prediction]:
    """Read the images and the predictions that belong to them."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(lines) != len(images):
        sys.exit(
            f"{path} has {len(lines)} lines; expected one for each of the {len(images)} images. "
            f"Run pipepar on {folder / 'images.npy'} again."
        )
    return [
        Prediction(image, name(line["label"]), line["score"], name(int(label)))
        for image, line, label in zip(images, lines, labels, strict=True)
    ]


def name(label: str | int) -> str:
    """Return a class's name; a model that has no names for its classes numbers them."""
    return CLASSES[label] if isinstance(label, int) else label


def row(predictions: Sequence[Prediction]) -> Table:
    """Lay out some images side by side, each above what the network says about it."""
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_row(*(picture(found.image) for found in predictions))
    grid.add_row(*(caption(found) for found in predictions))
    return grid


def picture(image: np.ndarray[Any, Any]) -> Text:
    """Return an image, [3, H, W], in half-blocks: a character shows one pixel above another."""
    pixels = image.transpose(1, 2, 0).tolist()  # [H][W][3]
    return Text("\n", no_wrap=True).join(
        Text.assemble(*(("▀", block(*pair)) for pair in zip(above, below, strict=True)))
        for above, below in zip(pixels[::2], pixels[1::2], strict=True)
    )


def block(above: list[int], below: list[int]) -> Style:
    """Return the style in which an upper half-block shows two pixels."""
    return Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))


def caption(found: Prediction) -> Text:
    """Say what the network sees, how sure it is and, where it errs, what is there."""
    right = found.label == found.truth
    text = Text.assemble((f"{found.label} {found.score:.2f}", "green" if right else "red"))
    return text if right else text.append(f", really {found.truth}")


if __name__ == "__main__":
    main()
