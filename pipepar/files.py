"""Checks of output paths, atomic writes, and fingerprints of input files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipepar.errors import InputError

# A file of up to _WHOLE bytes is hashed completely; of a larger one, _PARTS parts of _PART_BYTES.
_WHOLE: Final = 64 << 20
_PARTS: Final = 64
_PART_BYTES: Final = 256 << 10


def write_whole(path: Path, text: str, writer: str = "") -> None:
    """Write a file completely or not at all: write a temporary file, then rename it.

    Args:
        path: the final name. A link or a device such as /dev/stdout is written directly, because
            a rename would replace it with a file.
        text: the content, written as UTF-8.
        writer: a part of the temporary name that is unique to this process, if several processes
            may write `path`.

    Raises:
        OSError: the file system refused the write. A regular file at `path` is then unchanged.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8")
        return
    # The name is fixed, so that files of killed processes are overwritten and do not accumulate.
    partial = path.with_name(f".{path.name}{writer}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def fingerprint(path: Path) -> str:
    """Return a hash of a file, to detect that its content has changed.

    Args:
        path: the file.

    Returns:
        SHA-256, in hexadecimal, of the size and the bytes. For a file of more than 64 MiB: of the
        size, the modification time and 64 evenly spaced parts of 256 KiB, the first and the last
        included. A change elsewhere that preserves the time is not detected.

    Raises:
        OSError: the file cannot be read.
    """
    stat = path.stat()
    size = stat.st_size
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(f"{stat.st_mtime_ns} ".encode())
        for part in range(_PARTS):
            file.seek((size - _PART_BYTES) * part // (_PARTS - 1))
            digest.update(file.read(_PART_BYTES))
    return digest.hexdigest()


def require_writable(option: str, path: Path) -> None:
    """Raise an error if a file cannot be created, or replaced with a new one.

    Args:
        option: the option or argument that names the file, for the message.
        path: the file; it may exist.

    Raises:
        InputError: `path` is a directory, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise InputError(f"{option} {path} is a directory, expected a file; name one inside it")
    if not path.parent.is_dir():
        raise InputError(
            f"{option} {path}: the folder {path.parent} does not exist (relative to {Path.cwd()}); "
            f"create it with mkdir -p {path.parent}"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{option} {path}: this user may not write to the folder {path.parent}; choose another "
            f"folder, or change its permissions"
        )


def require_distinct(written: Mapping[str, Path], read: Mapping[str, Path]) -> None:
    """Raise an error if an output would replace an input or another output.

    Args:
        written: files to be written, by the option that names them.
        read: files and folders that are read, by the option that names them.

    Raises:
        InputError: an output is the same file as another output or an input, or is an existing file
            in a folder that is read.
    """
    outputs = list(written.items())
    for position, (option, path) in enumerate(outputs):
        for other, other_path in outputs[:position]:
            if path.absolute() == other_path.absolute() or _is_same_file(path, other_path):
                raise InputError(f"{option} and {other} are both {path}; name two files")
        for other, other_path in read.items():
            if _is_same_file(path, other_path) or _exists_inside(path, other_path):
                raise InputError(
                    f"{option} {path} would overwrite the data of {other} {other_path}; "
                    f"choose another name"
                )


def _is_same_file(one: Path, other: Path) -> bool:
    """Return whether two paths refer to one existing file or folder; False if one is missing."""
    return one.exists() and other.exists() and one.samefile(other)


def _exists_inside(path: Path, folder: Path) -> bool:
    return path.exists() and folder.is_dir() and folder.resolve() in path.resolve().parents
