"""Help texts that list the tasks and the formats, as their files describe themselves."""

from __future__ import annotations

from pipepar.data.readers.registry import input_summaries
from pipepar.data.writers.registry import output_summaries
from pipepar.tasks.registry import task_summaries


def input_help() -> str:
    """What INPUT may be."""
    return (
        f"{_plain(' '.join(input_summaries()))} A Hugging Face folder's own tokenizer or image "
        "processor prepares text and pictures, for image-classification also uint8 arrays; float "
        "arrays are taken as they are, there as pixel_values."
    )


def output_help() -> str:
    """What OUTPUT may be."""
    return (
        f"Where results go, in the input's order. {_plain(' '.join(output_summaries()))} Of a "
        "classification, the tensors are the logits."
    )


def task_help() -> str:
    """What --task may be."""
    tasks = (f"{name}: {line[:1].lower()}{line[1:]}" for name, line in task_summaries().items())
    return (
        f"What the model is to do, by Hugging Face's names. {_plain(' '.join(tasks))} The default "
        "is feature-extraction for a folder, raw for any other model. Answers in .jsonl are those "
        "of Hugging Face's pipelines."
    )


def _plain(text: str) -> str:
    """The text without markup of rich, whose tags begin with a bracket."""
    return text.replace("[", r"\[")
