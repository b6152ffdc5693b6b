"""The options of a job, and the checks that they are consistent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pipepar.data.readers.registry import kind_by_name
from pipepar.data.writers.registry import answer_suffixes, holds_answers
from pipepar.errors import InputError
from pipepar.host.devices import DeviceChoice
from pipepar.model.source.open_source import is_factory
from pipepar.tasks.model_folder import ModelFolder
from pipepar.tasks.registry import find_task, task_names
from pipepar.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Job:
    """The options of a job."""

    model: str
    """A Hugging Face folder, an exported program (.pt2), or package.module:factory."""
    input: Path
    """The file of texts or arrays, or the folder of pictures."""
    output: Path
    """The file of the results; its suffix determines the format."""
    task: str | None = None
    """Hugging Face's name of the task; None for the default, see `task_name`."""
    micro_batch: int | None = None
    """Samples per micro-batch, at least 1. None for that of a resumed output, or else that of
    `plan`, or else a measured choice."""
    depth: int | None = None
    """Micro-batches that may wait at each end of a channel, at least 1. None for that of `plan`, or
    else for the default, which is smaller if memory is short."""
    weights: Path | None = None
    """Checkpoint for the model of a factory; None for the values that the factory made."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Torch's name of the dtype to compute in; "auto" for the model's own."""
    device: DeviceChoice = "auto"
    """The kind of device to compute on; "auto" for a GPU if the rank has one."""
    max_length: int | None = None
    """Largest number of tokens of a text; None for the tokenizer's own limit."""
    padding: Literal["longest", "max_length"] = "longest"
    """The length that texts are padded to: that of the longest in their micro-batch ("longest"), or
    the largest number of tokens ("max_length")."""
    plan: Path | None = None
    """The file of an existing plan; None to make a plan."""
    trace: Path | None = None
    """The file of the timeline; None to write none."""
    preprocess: str | None = None
    """package.module:function that prepares the model's arguments; None for the model's own
    tokenizer or image processor; arrays are then used unchanged."""
    postprocess: str | None = None
    """package.module:function that makes the results; None for the results of the task."""
    labels: Path | None = None
    """The file with the correct class of each sample; None if there is none."""
    weights_from: Literal["disk", "root"] = "disk"
    """Whether every rank reads its own weights ("disk"), or rank 0 reads and sends all ("root")."""
    resume: bool = False
    """Whether to continue an unfinished output of an earlier run, if there is one."""
    on_error: Literal["stop", "skip"] = "stop"
    """Whether a sample that fails ends the job ("stop"), or gets a placeholder row, and the job
    continues ("skip")."""

    @property
    def lenient(self) -> bool:
        """Whether the job continues after samples that fail; they get placeholder rows."""
        return self.on_error == "skip"

    @property
    def weights_from_root(self) -> bool:
        """Whether rank 0 sends the weights to the other ranks.

        Always true for a factory without `weights`: no file contains the values that it made.
        """
        return self.weights_from == "root" or (self.is_factory and self.weights is None)

    @property
    def is_factory(self) -> bool:
        """Whether the model is a package.module:factory."""
        return is_factory(self.model)

    @property
    def is_folder(self) -> bool:
        """Whether the model is used as a Hugging Face folder: neither a factory nor a .pt2 file."""
        return not self.is_factory and Path(self.model).suffix != ".pt2"

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The requested dtype; None for the model's own."""
        dtype: torch.dtype | None = getattr(torch, self.dtype, None)
        return dtype

    @property
    def folder(self) -> ModelFolder | None:
        """The model's Hugging Face folder; None for any other model."""
        return ModelFolder(Path(self.model)) if self.is_folder else None

    @property
    def task_name(self) -> str:
        """The requested task, or else feature-extraction for a folder, raw for other models."""
        return self.task or ("feature-extraction" if self.is_folder else "raw")

    @property
    def resolved_task(self) -> Task:
        """The task with the name `task_name`."""
        return find_task(self.task_name)

    @property
    def tokenises_input(self) -> bool:
        """Whether the input is text by its suffix, and there is no ``--preprocess`` function."""
        # By the suffix only, since the input need not be visible to ranks other than 0.
        return kind_by_name(self.input) == "text" and self.preprocess is None

    @property
    def reads_tokens(self) -> bool:
        """Whether the task makes its results from token columns, without ``--postprocess``."""
        return self.resolved_task.about_tokens and self.postprocess is None

    @property
    def writes_answers(self) -> bool:
        """Whether the format of the output supports answers, and not only tensors."""
        return holds_answers(self.output)


def check_options(job: Job) -> None:
    """Raise an error if options contradict each other or do not suit the model, task or input.

    The ranges of numbers are not checked.

    Raises:
        InputError: the message names the option and the remedy.
    """
    check_task(job)
    if job.weights_from == "root" and Path(job.model).suffix == ".pt2":
        raise InputError(
            f"--weights-from root is not supported for {job.model}, since every rank must read the "
            "program; copy the file to a folder that all ranks see"
        )
    if not job.tokenises_input and (job.max_length is not None or job.padding != "longest"):
        raise InputError(
            f"--max-length and --padding apply only to texts that a tokenizer prepares, found "
            f"{job.input}{' with --preprocess' if job.preprocess else ''}; leave them out"
        )
    if job.labels is not None and not job.resolved_task.takes_labels:
        fitting = [name for name in task_names() if find_task(name).takes_labels]
        raise InputError(
            f"--labels {job.labels} is one class per sample, but the task is {job.task_name}; "
            f"expected a task with one score per class ({', '.join(fitting)}); give one of these "
            "as --task, or leave --labels out"
        )
    if job.reads_tokens:
        _check_tokens(job)


def check_task(job: Job) -> None:
    """Raise an error if the task is unknown, or needs a Hugging Face folder and the model is none.

    Raises:
        InputError: the message names the task and the remedy.
    """
    if job.resolved_task.needs_folder and not job.is_folder:
        raise InputError(
            f"{job.task_name} is for a Hugging Face folder, found {job.model}; leave --task out "
            "to get the outputs of the model"
        )


def _check_tokens(job: Job) -> None:
    """Raise InputError unless the output, model and input suit the answers of a token task."""
    task = job.task_name
    if not job.writes_answers:
        raise InputError(
            f"the answers of {task} differ in length, and output {job.output} holds arrays; name "
            f"an output that ends in {' or '.join(answer_suffixes())}, or convert the "
            "answers to tensors with --postprocess"
        )
    if not (job.is_folder and job.tokenises_input):
        raise InputError(
            f"the answers of {task} contain words of a text, which needs the tokenizer of a "
            f"Hugging Face folder as MODEL (found {job.model}) and text as INPUT (found "
            f"{job.input}), without --preprocess; otherwise give --postprocess too"
        )
