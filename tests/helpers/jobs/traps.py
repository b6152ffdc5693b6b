"""Jobs of the models in `factories` that fail on purpose."""

from pathlib import Path

from tests.helpers.jobs.command import pipepar

LIMIT = 5.0
"""Seconds between a failure and the end of the whole job."""


def with_plan(model: str, ranks: int, tmp_path: Path) -> list[str]:
    """A plan made before, if there is any: traps are for the pipeline, not for measuring."""
    path = tmp_path / "plan.json"
    status, _ = pipepar(
        *(
            "plan",
            f"tests.helpers.factories:{model}",
            "--shape",
            "2x4",
            "--stages",
            ranks,
            "-o",
            path,
        )
    )
    return ["--micro-batch", "2", *(["--plan", str(path)] if status == 0 else [])]
