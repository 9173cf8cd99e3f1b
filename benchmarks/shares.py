"""What parts cost of a whole that is timed beside them, round after round."""

import statistics


def shares(speeds: dict[str, list[float]], whole: str) -> dict[str, float]:
    """The time of each side over that of ``whole``: medians over the rounds of ``measure``."""
    return {
        name: statistics.median(of_whole / own for of_whole, own in zip(speeds[whole], values, strict=True))
        for name, values in speeds.items()
        if name != whole
    }


def table(title: str, speeds: dict[str, list[float]], whole: str) -> str:
    """Markdown."""
    lines = [f"| {title} | images/s | share of the time |", "|---|---|---|"]
    lines.append(f"| {whole} | {statistics.median(speeds[whole]):.1f} | |")
    for name, share in shares(speeds, whole).items():
        lines.append(f"| {name} | {statistics.median(speeds[name]):.0f} | {100 * share:.2f} % |")
    return "\n".join(lines)
