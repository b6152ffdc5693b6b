"""Everything that pipepar raises on purpose.

A message says what was found, what was expected and what to do about it.
"""


class PipeparError(Exception):
    """Base class: a problem that is explained to the user without a traceback."""


class InputError(PipeparError):
    """What the user named (a file, a model, an option) is missing, unreadable or does not fit."""


class WeightsError(PipeparError):
    """A checkpoint lacks a tensor, or holds one of another shape or dtype, or is damaged."""


class CaptureError(PipeparError):
    """A module cannot be turned into a graph, or the graph cannot be cut as asked."""


class PlanError(PipeparError):
    """A plan cannot be made, or does not fit the model or the number of ranks."""


class WireError(PipeparError):
    """What arrived from another rank is not what the protocol allows."""


class StageError(PipeparError):
    """A stage failed on a micro-batch; the cause is chained to it."""


class PeerError(PipeparError):
    """Another rank has a problem, and will tell it; this one only has to stop."""
