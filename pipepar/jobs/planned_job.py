"""The job that `pipepar plan` plans for: its model, and its input or a made-up example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn

from pipepar.data.readers.cast import cast
from pipepar.errors import InputError
from pipepar.jobs.inputs import example_of, open_input
from pipepar.jobs.options import Job, check_task
from pipepar.model.source.made_up_inputs import (
    TOKEN_INPUTS,
    Example,
    picture_example,
    shaped_example,
    text_example,
)
from pipepar.model.source.open_source import open_source
from pipepar.planner.plan_request import PlanRequest
from pipepar.tasks.model_folder import ModelFolder

_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Planned:
    """The options of the job to plan for."""

    model: str
    """A Hugging Face folder, an exported program (.pt2), or package.module:factory."""
    task: str | None = None
    """The task of the model; None for the default, see `Job.task_name`."""
    file: Path | None = None
    """The input of the job; None if there is none yet."""
    preprocess: str | None = None
    """package.module:function that prepares the model's arguments from the samples."""
    shapes: Sequence[str] = ()
    """The shapes of the model's arguments instead of an input; see `shaped_example`."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The dtype to compute in; "auto" for that of the checkpoint or the factory."""

    @property
    def job(self) -> Job:
        """The job to plan for, with the working directory in place of unknown paths."""
        file = self.file or Path()
        return Job(
            self.model, file, Path(), self.task, dtype=self.dtype, preprocess=self.preprocess
        )


def check_planned_job(planned: Planned) -> None:
    """Refuse options that are unknown or contradict each other.

    Raises:
        InputError: the message names the option and the remedy.
    """
    check_task(planned.job)
    if planned.shapes and planned.file is not None:
        raise InputError(
            f"found --input {planned.file} and --shape {planned.shapes[0]}, expected one of them, "
            "since each defines the model's arguments; leave --shape out to plan for the input"
        )
    if planned.preprocess is not None and planned.file is None:
        raise InputError(
            f"found --preprocess {planned.preprocess} without --input, expected samples to "
            "prepare; give --input too, or --shape with the arguments that the function returns"
        )


def planned_model(planned: Planned) -> nn.Module:
    """Return the model in eval mode with its parameters on meta.

    Raises:
        PipeparError: as in `open_source`.
    """
    dtype = planned.job.torch_dtype
    return open_source(
        planned.model, planned.job.resolved_task.head, values=False, dtype=dtype
    ).module


def example_for(
    planned: Planned, module: nn.Module, request: PlanRequest
) -> tuple[Example, int | None]:
    """Return arguments to capture the model with: from shapes, the input or the folder.

    Args:
        planned: the job to plan for, checked by `check_planned_job`.
        module: its model.
        request: the requirements of the plan.

    Returns:
        Positional and keyword arguments; and the number of samples, None if unknown.

    Raises:
        InputError: a shape or the file cannot be read, or the model's arguments are unknown.
        StageError: a function of the user's failed; the cause is chained to it.
    """
    job = planned.job
    if planned.shapes:
        args, kwargs = shaped_example(planned.shapes)
        dtype = job.torch_dtype
        return (args, kwargs) if dtype is None else cast(args, kwargs, dtype), None
    if planned.file is not None:
        reader = open_input(job)
        return example_of(reader, request.example_rows), len(reader)
    if job.folder is not None:
        return _made_up(job.folder, module), None
    raise InputError(
        f"found neither --input nor --shape, and {job.model} does not define its arguments; "
        "expected an example: give --shape SIZExSIZE:DTYPE for each input, such as 2x512"
    )


def _made_up(folder: ModelFolder, module: nn.Module) -> Example:
    """Return an example made from a folder's configuration and tokenizer.

    Raises:
        InputError: the model takes neither text nor pictures.
    """
    pretrained: Any = module if hasattr(module, "main_input_name") else module.model
    kind, config = pretrained.main_input_name, pretrained.config
    if kind == "pixel_values":
        return picture_example(config, pretrained.dtype)
    if kind == "input_ids":
        return text_example(config, _token_names(folder))
    raise InputError(
        f"{folder.path} takes {kind}, expected a model of text or of pictures if neither --input "
        f"nor --shape is given; give --shape {kind}=SIZExSIZE"
    )


def _token_names(folder: ModelFolder) -> Sequence[str]:
    """Return the model inputs that the folder's tokenizer makes; `TOKEN_INPUTS` if it has none."""
    if not any((folder.path / name).is_file() for name in _TOKENIZER_FILES):
        return TOKEN_INPUTS
    tokenizer = folder.tokenizer()
    encoded = tokenizer("example")
    return [name for name in tokenizer.model_input_names if name in encoded]
