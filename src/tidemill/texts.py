"""Tables and times as plain text, for people."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def moment(time_ms: int) -> str:
    """A time in UTC, to the minute, in whatever year a sender put it."""
    return str(np.datetime64(int(time_ms), "ms").astype("datetime64[m]")).replace("T", " ")


def milliseconds(text: str) -> int:
    """Of an ISO 8601 date or time; without a zone it is UTC. Raises ``ValueError``."""
    found = datetime.fromisoformat(text)
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
