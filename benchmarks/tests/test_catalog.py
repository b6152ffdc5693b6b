"""Every benchmark is listed, has a help page and published figures; a new one is one file."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import __main__, catalog
from benchmarks.__main__ import main
from benchmarks.shared import readme as readme_module
from benchmarks.shared.readme import README, publish, readme
from benchmarks.shared.registry import benchmark_names, find_benchmark

ADDED = Path(__file__).parent / "added"


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a benchmark that is added as one file."""
    monkeypatch.setattr(catalog, "__path__", [*catalog.__path__, str(ADDED)])
    yield "one-figure"
    if sys.modules.pop("benchmarks.catalog.one_figure", None):
        delattr(catalog, "one_figure")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the published reports, to which `publish` writes."""
    folder = tmp_path / "published"
    shutil.copytree(readme_module.PUBLISHED, folder)
    monkeypatch.setattr(readme_module, "PUBLISHED", folder)
    return folder


def test_the_readme_is_what_the_command_generates() -> None:
    assert README.read_text(encoding="utf-8") == readme(), "run python -m benchmarks readme"


def test_every_benchmark_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in benchmark_names():
        benchmark = find_benchmark(name)
        assert f"{benchmark.question} ({benchmark.duration})\n" in listed
        assert f"\n{name} " in listed


@pytest.mark.parametrize("name", benchmark_names())
def test_every_benchmark_has_a_help_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    page = capsys.readouterr().out
    benchmark = find_benchmark(name)
    for words in (benchmark.question, *(f"--{option.name}" for option in benchmark.options)):
        assert words in page
    assert all(f"  {goal}\n" in page for goal in benchmark.goals)


@pytest.mark.parametrize("name", benchmark_names())
def test_published_figures_can_be_replaced(name: str, published: Path) -> None:
    publish(name, "new figures\n")
    assert (published / f"{name}.md").read_text(encoding="utf-8").count("new figures") == 1


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jump"]) == 2
    assert (
        "found benchmark 'jump', expected readme or one of door, faults, "
        in capsys.readouterr().err
    )


def test_a_benchmark_that_starts_its_ranks_is_refused_under_a_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "launched", lambda: True)
    assert main(["hop"]) == 2
    assert "run it without mpirun or srun" in capsys.readouterr().err


def test_a_benchmark_is_one_file(added: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([added, "--sizes", "4", "5"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "one-figure: how long is it?" in words
    assert re.search(r"side seconds \W+ours 2.50 \(1.00..3.00\)", words)
    assert "goal: small: seconds at most 2; measured: 2.50 (1.00..3.00); NOT met" in words


def test_a_failure_has_a_message_and_a_status(
    added: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([added, "--fail", "1"]) == 3
    assert capsys.readouterr().err == "one-figure: it is broken\n"


@pytest.mark.usefixtures("published")
def test_publishing_stores_the_figures(
    added: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "README", tmp_path / "README.md")
    assert main([added, "--publish"]) == 0
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## one-figure: how long is it?\n\nenvironment: " in page
    assert "| a table | seconds |\n| --- | --- |\n| ours | 2.50 (1.00..3.00) |\n" in page
    assert "| small: seconds at most 2 | 2.50 (1.00..3.00) | **not met** |\n" in page
    assert ".venv/bin/python -m benchmarks one-figure    # no time\n" in page
    assert "<!--" not in page
