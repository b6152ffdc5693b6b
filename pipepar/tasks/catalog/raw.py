"""What the model returns."""

from pipepar.model.source.heads import Head
from pipepar.tasks.task import Task

TASK = Task(Head(None, None), takes_labels=True)
