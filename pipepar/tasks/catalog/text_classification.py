"""A label and its score."""

from pipepar.model.source.heads import Head, Logits
from pipepar.tasks.classes import class_logits
from pipepar.tasks.model_folder import classes_of
from pipepar.tasks.task import Task

TASK = Task(
    Head("AutoModelForSequenceClassification", Logits),
    answers=lambda folder: classes_of(folder).answer,
    check_output=class_logits,
    takes_labels=True,
)
