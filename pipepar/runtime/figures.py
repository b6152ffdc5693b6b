"""Figures as a person reads them: a share as a bar, a size in its unit."""

from __future__ import annotations


def bar(share: float, width: int) -> str:
    """Draw a share as a bar, in rich's markup. *Local.*

    Args:
        share: 0 to 1; what lies beyond is drawn as empty or as full.
        width: columns of the full bar.
    """
    full = round(width * min(max(share, 0.0), 1.0))
    return f"[green]{'█' * full}[/][dim]{'░' * (width - full)}[/]"


def readable_bytes(count: int) -> str:
    """A size as one reads it, such as 1.5 MiB. *Local.*

    Args:
        count: bytes, 0 or more.
    """
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        # By what is shown: 1023.97 of a unit reads as one of the next.
        if round(size, 1) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} TiB"
