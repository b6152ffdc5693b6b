"""The job to plan for: its model, and the input that the user names, else one made up."""

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
    """The job to plan for, as far as the user tells it."""

    model: str
    """A Hugging Face folder, an exported program (.pt2), or package.module:factory."""
    task: str | None = None
    """What the model is to do; None for what its kind does by itself."""
    file: Path | None = None
    """The job's input; None if there is none yet."""
    preprocess: str | None = None
    """package.module:function that makes the model's arguments of the input's samples."""
    shapes: Sequence[str] = ()
    """The model's arguments instead of an input; see `shaped_example`."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """What to compute in; "auto" for what the checkpoint or the factory says."""

    @property
    def job(self) -> Job:
        """The job itself; where nobody named its files, they are the working directory."""
        file = self.file or Path()
        return Job(
            self.model, file, Path(), self.task, dtype=self.dtype, preprocess=self.preprocess
        )


def check_planned(planned: Planned) -> None:
    """Refuse what is not known, or contradicts itself.

    Raises:
        InputError: naming the option, and what to give instead.
    """
    check_task(planned.job)
    if planned.shapes and planned.file is not None:
        raise InputError(
            f"found --input {planned.file} and --shape {planned.shapes[0]}, expected one of them, "
            "as each says what the model takes; leave --shape out to plan for the input"
        )
    if planned.preprocess is not None and planned.file is None:
        raise InputError(
            f"found --preprocess {planned.preprocess} without --input, expected samples for it to "
            "make arguments of; give --input too, or --shape with the arguments that it makes"
        )


def planned_model(planned: Planned) -> nn.Module:
    """The model in eval mode, parameters on meta.

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
    """Arguments to capture a model with, as a run of the job would.

    Args:
        planned: the job to plan for, as `check_planned` lets it pass.
        module: its model.
        request: what the user wants of the plan.

    Returns:
        Positional and keyword arguments; and how many samples there are, None if unknown.

    Raises:
        InputError: a shape or the file cannot be read, or nothing tells what the model takes.
        StageError: the function of the user's failed; the cause is chained to it.
    """
    job = planned.job
    if planned.shapes:
        args, kwargs = shaped_example(planned.shapes)
        dtype = job.torch_dtype
        return (args, kwargs) if dtype is None else cast(args, kwargs, dtype), None
    if planned.file is not None:
        reader = open_input(job)
        feed = example_of(reader, request.example_rows)
        return (feed.args, feed.kwargs), len(reader)
    if job.folder is not None:
        return _made_up(job.folder, module), None
    raise InputError(
        f"found neither --input nor --shape, and {job.model} does not tell what it takes; expected "
        "an example: give --shape SIZExSIZE:DTYPE for each input, such as 2x512"
    )


def _made_up(folder: ModelFolder, module: nn.Module) -> Example:
    """What a folder's configuration and its tokenizer tell."""
    pretrained: Any = module if hasattr(module, "main_input_name") else module.model
    kind, config = pretrained.main_input_name, pretrained.config
    if kind == "pixel_values":
        return picture_example(config, pretrained.dtype)
    if kind == "input_ids":
        return text_example(config, _token_names(folder))
    raise InputError(
        f"{folder.path} takes {kind}, expected a model of text or of pictures where there is "
        f"neither --input nor --shape; give --shape {kind}=SIZExSIZE"
    )


def _token_names(folder: ModelFolder) -> Sequence[str]:
    """What the folder's tokenizer gives the model."""
    if not any((folder.path / name).is_file() for name in _TOKENIZER_FILES):
        return TOKEN_INPUTS
    tokenizer = folder.tokenizer()
    given = tokenizer("example")
    return [name for name in tokenizer.model_input_names if name in given]
