"""Functions that tests name as tests.helpers.functions:NAME, for before and after a model."""

import os
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn


def lengths(texts: list[str]) -> torch.Tensor:
    """Four numbers for each text."""
    return torch.tensor([[len(t), t.count("a"), t.count(" "), 1.0] for t in texts])


def corners(pictures: list[Image.Image]) -> tuple[torch.Tensor, ...]:
    """The red of a picture's four corners."""
    pixels = [np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1], 0] for picture in pictures]
    return (torch.from_numpy(np.stack(pixels)).float(),)


made: list["weakref.ref[nn.Parameter]"] = []


def remembered() -> nn.Module:
    """A factory whose parameters tell for how long anybody holds them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    made.extend(map(weakref.ref, model.parameters()))
    return model


def while_it_is_gone(rows: torch.Tensor) -> torch.Tensor:
    assert made
    assert all(parameter() is None for parameter in made)
    return rows


def doubled(rows: torch.Tensor) -> torch.Tensor:
    return rows * 2


def swapped(rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"x": rows["y"], "y": rows["x"]}


def a_list(rows: torch.Tensor) -> Any:
    return rows.tolist()


def one_row(rows: torch.Tensor) -> Any:
    return rows.sum(0)


def fails_at_6(rows: torch.Tensor) -> torch.Tensor:
    if rows.max() >= 6:
        raise KeyError("six")
    return rows


def fails_at_7(output: torch.Tensor) -> torch.Tensor:
    if (output == 7).any():
        raise KeyError("seven")
    return output


def no_json_at_7(output: torch.Tensor) -> list[Any]:
    return [[row] if row[0] == 7 else row.tolist() for row in output]


def lacks_memory_at_6(rows: torch.Tensor) -> torch.Tensor:
    if rows.max() >= 6:
        raise MemoryError
    return rows


def whole_numbers(output: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"best": output.argmax(-1), "sure": output.amax(-1) > 0}


def hangs_at_6(rows: torch.Tensor) -> torch.Tensor:
    if rows.max() >= 6:
        Path(os.environ["PIPEPAR_TEST_CLOCK"]).write_text(str(time.time()))
        time.sleep(600)
    return rows


def as_json(output: torch.Tensor) -> list[Any]:
    return [{"sum": float(row.sum())} for row in output]


def two_tensors(output: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"low": output.amin(1), "high": output.amax(1)}


def logits_only(output: dict[str, torch.Tensor]) -> torch.Tensor:
    return output["logits"]


def no_json(output: torch.Tensor) -> list[Any]:
    return list(output)


def number(output: torch.Tensor) -> int:
    return 3


not_callable = 4


class Flat(nn.Module):
    """Scores that are the input itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


def identity() -> nn.Module:
    return Flat().eval()


def nothing(output: torch.Tensor) -> Any:
    return None


def leaves() -> nn.Module:
    """A factory while which somebody presses Ctrl-C."""
    raise KeyboardInterrupt


def states(output: dict[str, torch.Tensor]) -> torch.Tensor:
    return output["last_hidden_state"]


def squared(rows: torch.Tensor) -> torch.Tensor:
    return rows * rows
