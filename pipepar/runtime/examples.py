"""The input to plan for: the shapes or the file that the user names, else one made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from torch import nn

from pipepar.errors import InputError
from pipepar.model.synthetic import (
    TOKEN_INPUTS,
    Example,
    picture_example,
    shaped_example,
    text_example,
)
from pipepar.runtime.folder import load_tokenizer
from pipepar.runtime.inputs import open_input
from pipepar.runtime.options import Job

_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")


def example_for(
    model: str, task: str | None, module: nn.Module, shapes: Sequence[str], file: Path | None
) -> Example:
    """Arguments to capture a model with. *Local.*

    Args:
        model: what the user named: a folder, an exported program, or a factory.
        task: what the model is to do; None for what its kind does by itself.
        module: the model.
        shapes: see `shaped_example`; where there are any, they count.
        file: the input of the job to plan for; None if there is none.

    Returns:
        Positional and keyword arguments.

    Raises:
        InputError: a shape or the file cannot be read, or nothing tells what the model takes.
    """
    if shapes:
        return shaped_example(shapes)
    job = Job(model, file or Path(), Path(), task)
    if file is not None:
        feed = open_input(job).example()
        return feed.args, feed.kwargs
    if job.is_folder:
        return _made_up(Path(model), module)
    raise InputError(
        f"found neither --input nor --shape, and {model} does not tell what it takes; expected an "
        "example: give --shape SIZExSIZE:DTYPE for each input, such as 2x512"
    )


def _made_up(folder: Path, module: nn.Module) -> Example:
    """What a folder's configuration and its tokenizer tell."""
    pretrained: Any = module if hasattr(module, "main_input_name") else module.model
    kind, config = pretrained.main_input_name, pretrained.config
    if kind == "pixel_values":
        return picture_example(config, pretrained.dtype)
    if kind == "input_ids":
        return text_example(config, _token_names(folder))
    raise InputError(
        f"{folder} takes {kind}, expected a model of text or of pictures where there is neither "
        f"--input nor --shape; give --shape {kind}=SIZExSIZE"
    )


def _token_names(folder: Path) -> Sequence[str]:
    """What the folder's tokenizer gives the model."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return TOKEN_INPUTS
    tokenizer = load_tokenizer(str(folder))
    given = tokenizer("example")
    return [name for name in tokenizer.model_input_names if name in given]
