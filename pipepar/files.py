"""Files: those that pipepar writes can be written, replace nothing that it reads, and are whole;
those that it reads are told from others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipepar.errors import InputError

# Bytes up to which a file is hashed whole; of a larger one, so many parts of so many bytes.
_WHOLE: Final = 64 << 20
_PARTS: Final = 64
_PART_BYTES: Final = 256 << 10


def write_whole(path: Path, text: str, writer: str = "") -> None:
    """Write a text beside its final name, then rename it to that.

    Args:
        path: the final name. What is no plain file, such as a link or /dev/stdout, is written
            through instead, since a rename would put a file into its place.
        text: all of it; written as UTF-8.
        writer: a name of one's own, where others may write the same file at the same time.

    Raises:
        OSError: the file system refuses; nothing has then changed under the final name.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8")
        return
    # A fixed name: what a killed process left is overwritten by the next, not piled up.
    beside = path.with_name(f".{path.name}{writer}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def fingerprint(path: Path) -> str:
    """What tells a file's content from others.

    Args:
        path: the file.

    Returns:
        SHA-256 of its size and its bytes; where it is larger than 64 MiB, of its size, its time of
        change and 64 parts spread evenly from its first byte to its last.

    Raises:
        OSError: it cannot be read.
    """
    size, changed = path.stat().st_size, path.stat().st_mtime_ns
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(f"{changed} ".encode())
        for part in range(_PARTS):
            file.seek((size - _PART_BYTES) * part // (_PARTS - 1))
            digest.update(file.read(_PART_BYTES))
    return digest.hexdigest()


def require_writable(option: str, path: Path) -> None:
    """Refuse a file that could not be written.

    Args:
        option: what the user named it with, for the message.
        path: the file; it may exist.

    Raises:
        InputError: it is a directory, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise InputError(f"{option} {path} is a directory, expected a file; name one inside it")
    if not path.parent.is_dir():
        raise InputError(
            f"{option} {path}: the folder {path.parent} does not exist, seen from {Path.cwd()}; "
            f"create it with mkdir -p {path.parent}"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{option} {path}: this user may not write to the folder {path.parent}; choose another "
            f"folder, or change its permissions"
        )


def require_apart(written: Mapping[str, Path], read: Mapping[str, Path]) -> None:
    """Refuse to replace what is read, or what is written too.

    Args:
        written: files to be written, by the option that names them.
        read: files and folders that are read, by the option that names them.

    Raises:
        InputError: two of them are one file, or one lies in a folder that is read.
    """
    outputs = list(written.items())
    for at, (option, path) in enumerate(outputs):
        for other, place in outputs[:at]:
            if path.absolute() == place.absolute() or _same(path, place):
                raise InputError(f"{option} and {other} are both {path}; name two files")
        for other, place in read.items():
            if _same(path, place) or _replaces_part_of(path, place):
                raise InputError(
                    f"{option} {path} would replace what {other} {place} names; choose another name"
                )


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _replaces_part_of(path: Path, folder: Path) -> bool:
    """Whether a file that exists lies in a folder."""
    return path.exists() and folder.is_dir() and folder.resolve() in path.resolve().parents
