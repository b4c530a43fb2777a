"""Numbers as people read them."""

from __future__ import annotations


def short(value: float) -> str:
    """A number for an axis or a tile: 0.03, 12.5, 1,234, 3.4 M, 2.1 G."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e15:
        return f"{value:.1e}"
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if size >= limit:
            return f"{value / limit:.3g}{unit}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def plural(count: int, what: str) -> str:
    """A number with its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
