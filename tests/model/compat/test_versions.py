"""pipepar works with the oldest and the newest transformers that pyproject.toml accepts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.full, pytest.mark.long(180)]

ROOT = Path(__file__).parents[3]
# Models from configurations, saved, cut into stages and compared with `from_pretrained`.
TESTS = ("tests/model/weights/test_checkpoints.py", "tests/model/source/test_open_source.py")


def transformers_bounds() -> tuple[str, str]:
    """Return the oldest version that pyproject.toml accepts, and the first one that it does not."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'"transformers>=([\d.]+),<([\d.]+)"', text)
    assert found is not None
    return found[1], found[2]


def run(*words: object, packages: Path | None = None) -> str:
    """Run Python with the packages of a folder before its own, and return what it prints."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**own, "PYTHONPATH": str(packages)} if packages else own,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("wanted", ["oldest", "newest"])
def test_a_version_of_transformers(wanted: str, tmp_path: Path) -> None:
    oldest, limit = transformers_bounds()
    requirement = f"=={oldest}" if wanted == "oldest" else f">={oldest},<{limit}"
    run("-m", "pip", "install", "--quiet", "--target", tmp_path, f"transformers{requirement}")
    file = run("-c", "import transformers; print(transformers.__file__)", packages=tmp_path)
    assert Path(file.strip()).is_relative_to(tmp_path)
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, packages=tmp_path)
