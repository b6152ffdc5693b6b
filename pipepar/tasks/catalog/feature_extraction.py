"""The mean over a text's tokens, not normalised."""

from pipepar.model.source.heads import EMBEDDING
from pipepar.tasks.task import Task

TASK = Task(EMBEDDING, needs_folder=True)
