"""Jobs of the models in `factories` that fail intentionally."""

from pathlib import Path

from tests.helpers.jobs.command import pipepar

LIMIT = 5.0
"""The longest time in seconds between a failure and the end of the job."""


def with_plan(model: str, ranks: int, tmp_path: Path) -> list[str]:
    """Return options with a plan if one can be made, so that the model fails in the pipeline."""
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
