"""Human-readable text for shares, sizes, times, rates and ranks."""

from __future__ import annotations

from collections.abc import Sequence


def bar(share: float, width: int) -> str:
    """Return a share as a bar in rich markup.

    Args:
        share: clamped to 0 to 1.
        width: columns of the whole bar; the part beyond the share is dimmed.
    """
    full = round(width * min(max(share, 0.0), 1.0))
    return f"[green]{'█' * full}[/][dim]{'░' * (width - full)}[/]"


def readable_bytes(count: int) -> str:
    """Return a size as text with its unit, such as 1.5 MiB.

    Args:
        count: bytes, 0 or more.
    """
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        # Compare the rounded value: 1023.97 KiB is shown as 1.0 MiB, not as 1024.0 KiB.
        if round(size, 1) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} TiB"


def readable_seconds(seconds: float) -> str:
    """Return a time as text with its unit, such as 25.0 us.

    Args:
        seconds: 0 or more.
    """
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if round(seconds / size, 1) < 1000:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:,.1f} s"


def readable_rate(bandwidth: float) -> str:
    """Return a bandwidth as text in GB/s, such as 1.25 GB/s.

    Args:
        bandwidth: bytes per second.
    """
    return f"{bandwidth / 1e9:.2f} GB/s"


def named(ranks: Sequence[int]) -> str:
    """Return ranks as text, such as "ranks 0-3, 6".

    Args:
        ranks: at least one, ascending.
    """
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(texts)}"
