"""What the user asked for, and whether it goes together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pipepar.data.readers.registry import kind_by_name
from pipepar.data.writers.registry import answer_suffixes, holds_answers
from pipepar.errors import InputError
from pipepar.host.devices import Wanted
from pipepar.model.source.open_source import is_factory
from pipepar.tasks.model_folder import ModelFolder
from pipepar.tasks.registry import find_task, task_names
from pipepar.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Job:
    """What the user asked for."""

    model: str
    """A Hugging Face folder, an exported program (.pt2), or package.module:factory."""
    input: Path
    """Text, arrays, or a folder of pictures."""
    output: Path
    """Where the results go; its suffix says how."""
    task: str | None = None
    """What the model is to do, by Hugging Face's name; None for what its kind does by itself."""
    micro_batch: int | None = None
    """Samples that travel together, at least 1; None for what the plan says, or is measured to be
    best."""
    depth: int | None = None
    """Micro-batches that may wait on each end of a channel, at least 1; None likewise."""
    weights: Path | None = None
    """Checkpoint for a factory's model; None to take the factory's own values."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """What to compute in, by torch's name; "auto" for what the checkpoint or the factory says."""
    device: Wanted = "auto"
    """What ranks compute on; "auto" for a GPU where there is one."""
    max_length: int | None = None
    """Tokens after which a text is cut; None for the tokenizer's own limit."""
    padding: Literal["longest", "max_length"] = "longest"
    """To which length texts are padded: the "longest" of their micro-batch, or "max_length"."""
    plan: Path | None = None
    """A plan made earlier; None to make one."""
    trace: Path | None = None
    """Where the timeline goes; None for nowhere."""
    preprocess: str | None = None
    """package.module:function that makes the model's arguments; None for what the model brings."""
    postprocess: str | None = None
    """package.module:function that makes the results; None for those of the task."""
    labels: Path | None = None
    """The samples' right classes; None if unknown."""
    weights_from: Literal["disk", "root"] = "disk"
    """Who reads the weights: every rank its own ("disk"), or rank 0 for all ("root")."""
    resume: bool = False
    """Whether to go on with what an earlier run has left of the output, if it has."""

    on_error: Literal["stop", "skip"] = "stop"
    """What becomes of the job when a sample fails: it ends, or goes on without the sample."""

    @property
    def lenient(self) -> bool:
        """Whether the job goes on without samples that fail."""
        return self.on_error == "skip"

    @property
    def weights_from_root(self) -> bool:
        """Whether rank 0 sends the others their weights; also those that a factory gives there."""
        return self.weights_from == "root" or (self.is_factory and self.weights is None)

    @property
    def is_factory(self) -> bool:
        """Whether the model is named as package.module:factory."""
        return is_factory(self.model)

    @property
    def is_folder(self) -> bool:
        """Whether the model is named as a Hugging Face folder."""
        return not self.is_factory and Path(self.model).suffix != ".pt2"

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype asked for; None to leave it to the model."""
        dtype: torch.dtype | None = getattr(torch, self.dtype, None)
        return dtype

    @property
    def folder(self) -> ModelFolder | None:
        """The model's Hugging Face folder; None for any other model."""
        return ModelFolder(Path(self.model)) if self.is_folder else None

    @property
    def task_name(self) -> str:
        """The task asked for; else feature-extraction for a folder, raw for any other model."""
        return self.task or ("feature-extraction" if self.is_folder else "raw")

    @property
    def resolved_task(self) -> Task:
        """The task of that name."""
        return find_task(self.task_name)

    @property
    def pads_texts(self) -> bool:
        """Whether the samples are texts that the folder's own tokenizer prepares."""
        # By the name alone: only rank 0 has to see the input.
        return kind_by_name(self.input) == "text" and self.preprocess is None

    @property
    def reads_tokens(self) -> bool:
        """Whether the results are about tokens, and made by the task itself."""
        return self.resolved_task.about_tokens and self.postprocess is None

    @property
    def writes_answers(self) -> bool:
        """Whether the output can hold a task's answers, and not only tensors."""
        return holds_answers(self.output)


def check_options(job: Job) -> None:
    """Refuse options that are out of range or contradict each other.

    Raises:
        InputError: naming the option, and what to give instead.
    """
    check_task(job)
    if job.weights_from == "root" and Path(job.model).suffix == ".pt2":
        raise InputError(
            f"--weights-from root does not go with {job.model}, whose program every rank must "
            "read; copy the file to where all ranks see it"
        )
    if not job.pads_texts and (job.max_length is not None or job.padding != "longest"):
        raise InputError(
            f"--max-length and --padding are for texts that a tokenizer prepares, found "
            f"{job.input}{' with --preprocess' if job.preprocess else ''}; leave them out"
        )
    if job.labels is not None and not job.resolved_task.takes_labels:
        fitting = [name for name in task_names() if find_task(name).takes_labels]
        raise InputError(
            f"--labels {job.labels} is one class a sample, but the task is {job.task_name}; "
            f"expected one with one score a class, {', '.join(fitting)}: give that --task, or "
            "leave --labels out"
        )
    if job.reads_tokens:
        _check_tokens(job)


def check_task(job: Job) -> None:
    """Refuse a task that is not known, or that the model is none for.

    Raises:
        InputError: naming the task, and what to give instead.
    """
    if job.resolved_task.needs_folder and not job.is_folder:
        raise InputError(
            f"{job.task_name} is for a Hugging Face folder, found {job.model}; leave --task out "
            f"to get what the model returns"
        )


def _check_tokens(job: Job) -> None:
    task = job.task_name
    if not job.writes_answers:
        raise InputError(
            f"the answers of {task} differ in length, and output {job.output} holds arrays; name "
            f"an output that ends in {' or '.join(answer_suffixes())}, or make tensors of them "
            "with --postprocess"
        )
    if not (job.is_folder and job.pads_texts):
        raise InputError(
            f"{task} answers with the words of a text, which needs the tokenizer of a Hugging Face "
            f"folder as MODEL (found {job.model}) and text as INPUT (found {job.input}), without "
            "--preprocess; otherwise give --postprocess too"
        )
