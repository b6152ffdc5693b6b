"""The exceptions that pipepar raises on purpose.

A message states what was found, what was expected, and a remedy.
"""


class PipeparError(Exception):
    """Base class of all errors that the user sees without a traceback."""


class InputError(PipeparError):
    """A file, model or option of the user is missing, unreadable or not suitable."""


class WeightsError(PipeparError):
    """A checkpoint is damaged, lacks a tensor, or has one of another shape or dtype."""


class CaptureError(PipeparError):
    """A module cannot be traced into a graph, or the graph cannot be cut as requested."""


class PlanError(PipeparError):
    """A plan cannot be made, or does not match the model or the number of ranks."""


class WireError(PipeparError):
    """Data from another rank violates the protocol."""


class StageError(PipeparError):
    """A stage failed on a micro-batch; its ``__cause__`` is the original exception."""


class PeerError(PipeparError):
    """Another rank failed and reports the error; this rank only has to stop."""
