"""Search the passages by meaning: ``python -m demo.search DIR EMBEDDINGS.npy "query"``.

DIR is what demo.fetch filled, EMBEDDINGS.npy what pipepar made of its passages.txt: a row a
passage, the mean of the last hidden states. The query is embedded here, by the same model in one
piece, and the nearest passages by cosine similarity are shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

NEAREST = 3
WIDTH = 88
"""Columns; longer lines are hard to read."""


def main() -> None:
    """Answer one query."""
    if len(sys.argv) != 4:
        sys.exit('usage: python -m demo.search DIR EMBEDDINGS.npy "query"')
    folder, query = Path(sys.argv[1]), sys.argv[3]
    passages, sources = lines(folder / "passages.txt"), lines(folder / "sources.txt")
    embeddings = torch.from_numpy(np.load(sys.argv[2]))
    if embeddings.ndim != 2 or len(embeddings) != len(passages):
        sys.exit(
            f"{sys.argv[2]} has shape {tuple(embeddings.shape)}; expected a row for each of the "
            f"{len(passages)} passages. Run pipepar on {folder / 'passages.txt'} again."
        )
    scores = torch.cosine_similarity(embeddings, embed(folder / "minilm", query))
    console = Console(width=min(WIDTH, Console().width))
    console.print(Text.assemble("\nnearest to ", (f"“{query}”", "bold"), f" of {len(scores)}\n"))
    for at in scores.argsort(descending=True)[:NEAREST].tolist():
        console.print(shown(passages[at], sources[at], float(scores[at])))


@torch.inference_mode()
def embed(folder: Path, query: str) -> torch.Tensor:
    """Return the query's embedding, [1, hidden]."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokens = AutoTokenizer.from_pretrained(folder)(query, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    hidden: torch.Tensor = model(**tokens).last_hidden_state  # [1, tokens, hidden]
    return hidden.mean(dim=1)


def shown(passage: str, source: str, score: float) -> Group:
    """Lay out one passage under the line that says where it stands and how near it is."""
    bar = "━" * round(20 * max(score, 0.0))
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    head.add_row(Text(source, "bold cyan"), Text(f"{bar} {score:.2f}", "green"))
    return Group(head, Padding(Text(passage), (0, 0, 1, 2)))


def lines(path: Path) -> list[str]:
    """Return a file's lines."""
    return path.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    main()
