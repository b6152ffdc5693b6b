"""pipepar: pipeline-parallel inference for PyTorch models on HPC clusters.

Importing it starts neither MPI nor CUDA, and loads torch only when `Pipeline` is asked for.
"""

from typing import TYPE_CHECKING, Any

from pipepar.errors import (
    CaptureError,
    InputError,
    PeerError,
    PipeparError,
    PlanError,
    StageError,
    WeightsError,
    WireError,
)

if TYPE_CHECKING:
    from pipepar.pipeline import Pipeline

__all__ = [
    "CaptureError",
    "InputError",
    "PeerError",
    "Pipeline",
    "PipeparError",
    "PlanError",
    "StageError",
    "WeightsError",
    "WireError",
]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from pipepar.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'pipepar' has no attribute {name!r}")
