"""Search the passages by meaning: ``python -m demo.search DIR EMBEDDINGS.npy "query"``.

DIR is the folder of demo.fetch. EMBEDDINGS.npy is pipepar's output for its passages.txt: one row
per passage, the mean of the last hidden states. The unsplit model embeds the query in this process,
and the nearest passages by cosine similarity are printed.
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
"""Maximum number of columns of the output."""


def main() -> None:
    """Print the passages nearest to the query."""
    if len(sys.argv) != 4:
        sys.exit('usage: python -m demo.search DIR EMBEDDINGS.npy "query"')
    folder, query = Path(sys.argv[1]), sys.argv[3]
    passages, sources = lines(folder / "passages.txt"), lines(folder / "sources.txt")
    embeddings = torch.from_numpy(np.load(sys.argv[2]))
    if embeddings.ndim != 2 or len(embeddings) != len(passages):
        sys.exit(
            f"{sys.argv[2]} has shape {tuple(embeddings.shape)}; expected one row for each of the "
            f"{len(passages)} passages. Run pipepar on {folder / 'passages.txt'} again."
        )
    scores = torch.cosine_similarity(embeddings, embed(folder / "minilm", query))
    console = Console(width=min(WIDTH, Console().width))
    console.print(Text.assemble("\nnearest to ", (f"“{query}”", "bold"), f" of {len(scores)}\n"))
    for index in scores.argsort(descending=True)[:NEAREST].tolist():
        console.print(layout(passages[index], sources[index], float(scores[index])))


@torch.inference_mode()
def embed(folder: Path, query: str) -> torch.Tensor:
    """Return the query's embedding, [1, hidden]."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokens = AutoTokenizer.from_pretrained(folder)(query, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    hidden: torch.Tensor = model(**tokens).last_hidden_state  # [1, tokens, hidden]
    return hidden.mean(dim=1)


def layout(passage: str, source: str, score: float) -> Group:
    """Return one passage, below a line with its source and its score."""
    bar = "━" * round(20 * max(score, 0.0))
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    head.add_row(Text(source, "bold cyan"), Text(f"{bar} {score:.2f}", "green"))
    return Group(head, Padding(Text(passage), (0, 0, 1, 2)))


def lines(path: Path) -> list[str]:
    """Return the lines of a file."""
    return path.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    main()
