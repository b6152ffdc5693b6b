"""Functions for --preprocess and --postprocess, named as tests.helpers.functions:NAME."""

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
    """Return four numbers per text, [texts, 4]."""
    return torch.tensor([[len(t), t.count("a"), t.count(" "), 1.0] for t in texts])


def corners(pictures: list[Image.Image]) -> tuple[torch.Tensor, ...]:
    """Return the red values of each picture's four corners, [pictures, 4]."""
    pixels = [np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1], 0] for picture in pictures]
    return (torch.from_numpy(np.stack(pixels)).float(),)


parameters: list["weakref.ref[nn.Parameter]"] = []


def tracked() -> nn.Module:
    """Return a model and keep weak references to its parameters."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    parameters.extend(map(weakref.ref, model.parameters()))
    return model


def requires_release(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows if all parameters of `tracked` have been released."""
    assert parameters
    assert all(parameter() is None for parameter in parameters)
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
    """Returns its input as the scores of classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


def identity() -> nn.Module:
    return Flat().eval()


def nothing(output: torch.Tensor) -> Any:
    return None


def interrupted() -> nn.Module:
    """Act like a factory that Ctrl-C interrupts."""
    raise KeyboardInterrupt


def states(output: dict[str, torch.Tensor]) -> torch.Tensor:
    return output["last_hidden_state"]


def squared(rows: torch.Tensor) -> torch.Tensor:
    return rows * rows
