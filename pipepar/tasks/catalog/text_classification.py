"""A label and its score."""

from pipepar.model.source.heads import Head, Logits
from pipepar.tasks.answers import Answer
from pipepar.tasks.classes import class_logits
from pipepar.tasks.model_folder import ModelFolder, classes_of
from pipepar.tasks.task import Task


def _answers(folder: ModelFolder | None) -> Answer:
    return classes_of(folder).answer


TASK = Task(
    Head("AutoModelForSequenceClassification", Logits),
    answers=_answers,
    check_output=class_logits,
    takes_labels=True,
)
