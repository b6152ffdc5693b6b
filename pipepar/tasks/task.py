"""The definition of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipepar.model.source.heads import Head
from pipepar.tasks.answers import Answer
from pipepar.tasks.model_folder import ModelFolder


@dataclass(frozen=True, slots=True)
class Task:
    """The inputs that a task reads, the model that it needs, and the output that it writes."""

    head: Head
    """Builds the task's model from a Hugging Face folder."""
    answers: Callable[[ModelFolder | None], Answer] | None = None
    """Takes the folder, or None if the model is not one, and returns the function that makes the
    rows of a .jsonl output. None if the output contains the model's tensors."""
    check_output: Callable[[Any], object] | None = None
    """Raises InputError for a model output that `answers` cannot use. It is called before the run,
    with tensors that have shapes and dtypes only."""
    required_text: Callable[[ModelFolder], str] | None = None
    """Returns a string that each input text must contain. None if there is none."""
    needs_folder: bool = False
    """Whether the model must be a Hugging Face folder."""
    takes_labels: bool = False
    """Whether each sample has one class, so that --labels can count the correct ones."""
    takes_pixels: bool = False
    """Whether arrays of the input are pictures for the folder's image processor."""
    about_tokens: bool = False
    """Whether the output depends on the tokens of a text and varies in length. It then needs a
    folder with a tokenizer, and a .jsonl output."""
