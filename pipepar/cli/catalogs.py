"""Help texts that list the tasks and the formats, from the first lines of their modules."""

from __future__ import annotations

from pipepar.data.readers.registry import input_summaries
from pipepar.data.writers.registry import output_summaries
from pipepar.tasks.registry import task_summaries


def input_help() -> str:
    """Return the help text of INPUT."""
    return (
        f"{_escape(' '.join(input_summaries()))} Text and pictures are prepared by the tokenizer "
        "or image processor of the Hugging Face folder, for image-classification also uint8 "
        "arrays. Float arrays are passed to the model unchanged, for image-classification as "
        "pixel_values."
    )


def output_help() -> str:
    """Return the help text of OUTPUT."""
    return (
        f"File for the results, in the order of the input. {_escape(' '.join(output_summaries()))} "
        "For a classification, the tensors are the logits."
    )


def task_help() -> str:
    """Return the help text of --task."""
    tasks = (f"{name}: {line[:1].lower()}{line[1:]}" for name, line in task_summaries().items())
    return (
        f"Task, by Hugging Face's names. {_escape(' '.join(tasks))} Default: feature-extraction "
        "for a Hugging Face folder, raw for other models. Answers in .jsonl equal those of "
        "Hugging Face's pipelines."
    )


def _escape(text: str) -> str:
    """Escape each opening bracket, which would begin a tag of rich markup."""
    return text.replace("[", r"\[")
