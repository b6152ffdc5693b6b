"""Everything that pipepar knows about a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipepar.model.source.heads import Head
from pipepar.tasks.answers import Answer
from pipepar.tasks.model_folder import ModelFolder


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is to do: what it reads, what it needs from the model, what it answers."""

    head: Head
    """How a Hugging Face folder becomes a model for it."""
    answers: Callable[[ModelFolder | None], Answer] | None = None
    """Makes the answers of a .jsonl output, given the folder if the model is one; None where the
    output holds the model's tensors."""
    check_output: Callable[[Any], object] | None = None
    """Raises InputError if the model's output cannot be answered with; given before the work, with
    shapes and dtypes only."""
    required_text: Callable[[ModelFolder], str] | None = None
    """What each input text must contain; None for nothing."""
    needs_folder: bool = False
    """Whether the model must be a Hugging Face folder."""
    takes_labels: bool = False
    """Whether each sample has one class, so that --labels can tell how many are right."""
    takes_pixels: bool = False
    """Whether arrays of the input are pictures, for the folder's image processor."""
    about_tokens: bool = False
    """Whether the answers are about the tokens of a text, and differ in length; they need a folder
    with a tokenizer, and a .jsonl output."""
