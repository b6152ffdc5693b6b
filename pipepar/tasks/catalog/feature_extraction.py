"""The mean of the last hidden state over the tokens of a text, not normalised."""

from pipepar.model.source.heads import EMBEDDING
from pipepar.tasks.task import Task

TASK = Task(EMBEDDING, needs_folder=True)
