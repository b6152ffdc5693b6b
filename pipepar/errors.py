"""The exceptions of pipepar.

A message states what was found, what was expected, and a remedy.
"""


class PipeparError(Exception):
    """Base class of all exceptions; a failed job shows their message without their traceback."""


class InputError(PipeparError):
    """A file, model or option of the user is missing, unreadable or unsuitable."""


class WeightsError(PipeparError):
    """A checkpoint is damaged, or a tensor is missing or has another shape or dtype."""


class CaptureError(PipeparError):
    """A module cannot be traced with its example, or pipepar cannot run its graph."""


class PlanError(PipeparError):
    """A plan cannot be made, or does not fit the model, the number of ranks or their memory."""


class WireError(PipeparError):
    """Data from another rank violates the protocol, or a channel is closed or has failed."""


class StageError(PipeparError):
    """A stage or a function of the user failed; its ``__cause__`` is the original exception."""


class PeerError(PipeparError):
    """Another rank failed and reports the error; this rank only has to stop."""
