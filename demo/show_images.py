"""Show images and their predictions: ``python -m demo.show_images DIR PREDICTIONS.jsonl``.

DIR is the folder of demo.fetch_images. PREDICTIONS.jsonl is pipepar's output for its images.npy:
one line per image, with a label and its score. The first images are shown, and the wrong
predictions with the highest scores.
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
    """One image, its predicted label and its true label."""

    image: np.ndarray[Any, Any]
    """uint8 [3, 32, 32]."""
    label: str
    score: float
    """Score of the label, 0 to 1."""
    truth: str


def main() -> None:
    """Show two rows of images, as many as fit into the terminal."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m demo.show_images DIR PREDICTIONS.jsonl")
    predictions = read(Path(sys.argv[1]), Path(sys.argv[2]))
    console = Console()
    if console.color_system is None:
        return  # images are drawn with colours only
    across = max(1, console.width // (predictions[0].image.shape[-1] + GAP))
    mistakes = [found for found in predictions if found.label != found.truth]
    mistakes.sort(key=lambda found: found.score, reverse=True)
    console.print("\n[bold]the first images[/]\n", row(predictions[:across]))
    console.print("\n[bold]mistakes with the highest scores[/]\n", row(mistakes[:across]))


def read(folder: Path, path: Path) -> list[Prediction]:
    """Return the predictions with their images."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(lines) != len(images):
        sys.exit(
            f"{path} has {len(lines)} lines; expected one line for each of the {len(images)} "
            f"images. Run pipepar on {folder / 'images.npy'} again."
        )
    return [
        Prediction(image, name(line["label"]), line["score"], name(int(label)))
        for image, line, label in zip(images, lines, labels, strict=True)
    ]


def name(label: str | int) -> str:
    """Return the name of a class; pipepar writes its index if the model has no names."""
    return CLASSES[label] if isinstance(label, int) else label


def row(predictions: Sequence[Prediction]) -> Table:
    """Return a table with images side by side, each above its caption."""
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_row(*(picture(found.image) for found in predictions))
    grid.add_row(*(caption(found) for found in predictions))
    return grid


def picture(image: np.ndarray[Any, Any]) -> Text:
    """Return an image, [3, H, W], as half-blocks: a character shows two pixels of a column."""
    pixels = image.transpose(1, 2, 0).tolist()  # [H][W][3]
    return Text("\n", no_wrap=True).join(
        Text.assemble(*(("▀", block(*pair)) for pair in zip(above, below, strict=True)))
        for above, below in zip(pixels[::2], pixels[1::2], strict=True)
    )


def block(above: list[int], below: list[int]) -> Style:
    """Return the colours with which an upper half-block shows two pixels."""
    return Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))


def caption(found: Prediction) -> Text:
    """Return the label and its score and, if it is wrong, the true label."""
    right = found.label == found.truth
    text = Text.assemble((f"{found.label} {found.score:.2f}", "green" if right else "red"))
    return text if right else text.append(f", true label {found.truth}")


if __name__ == "__main__":
    main()
