"""Numbers as the page writes them: shares, sizes, durations."""

import json
import math
from collections.abc import Mapping


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def interval(stderr: float) -> str:
    """Half of a 95 % interval in points, behind a percentage; none where nothing varied."""
    return f" ± {196 * stderr:.1f}" if stderr else ""


def share(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole else 0.0
    if percent <= 0 or percent >= 1:
        return f"{percent:.1f}%"
    return f"{percent:.2f}%" if percent >= 0.005 else "<0.01%"


def width(part: float, whole: float) -> str:
    return f"width: {100 * part / whole if whole else 0:.3f}%"


def heat(part: float, whole: float) -> str:
    """How dark a cell is; the root keeps small shares apart from none."""
    return percent(0.1 + 0.6 * math.sqrt(part / whole))


def amount(count: float, unit: str) -> str:
    return size(count) if unit == "bytes" else f"{count:,}"


def duration(secs: float) -> str:
    """60 s and over in minutes, an hour and over in hours."""
    if secs < 60:
        return f"{secs:.1f} s"
    minutes, seconds = divmod(round(secs), 60)
    return (
        f"{minutes} min {seconds:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def short(count: float) -> str:
    """Four digits of a million and more."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:#.4g} {unit}"
    return f"{count:,.0f}"


def size(num_bytes: float) -> str:
    if abs(num_bytes) < 1000:
        return f"{num_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if abs(num_bytes) < 999.95:
            return f"{num_bytes:#.4g} {unit}"
    return f"{num_bytes / 1000:#.4g} TB"


def pretty(found: Mapping) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False)


FORMS = (percent, interval, share, width, heat, amount, duration, short, size, pretty)
