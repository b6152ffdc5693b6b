"""The model's own output, unchanged."""

from pipepar.model.source.heads import Head
from pipepar.tasks.task import Task

TASK = Task(Head(None, None), takes_labels=True)
