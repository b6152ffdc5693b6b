"""pipepar: pipeline-parallel inference for PyTorch models on HPC clusters.

Importing it starts neither MPI nor CUDA. torch is loaded when `Pipeline` or `values_on_root` is
first accessed.
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
    from pipepar.pipeline import Pipeline, values_on_root

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
    "values_on_root",
]


def __getattr__(name: str) -> Any:
    """Load the names that need torch when they are first accessed."""
    if name in ("Pipeline", "values_on_root"):
        from pipepar import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'pipepar' has no attribute {name!r}")
