"""Small charts as SVG, drawn on the server: they need no script and no style of their own."""

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 160, 32  # of a line chart, pixels


def sparkline(values: Sequence[float], label: str) -> Markup:
    """A line from the oldest value to the newest, from zero to the largest; ``label`` is for those
    who cannot see it."""
    highest = max(values, default=0) or 1
    step = WIDTH / max(len(values) - 1, 1)
    points = " ".join(
        f"{place * step:.1f},{HEIGHT - 1 - value / highest * (HEIGHT - 2):.1f}"
        for place, value in enumerate(values)
    )
    return Markup(
        '<svg class="sparkline" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" '
        'height="{}" preserveAspectRatio="none"><polyline points="{}"/></svg>'
    ).format(label, WIDTH, HEIGHT, WIDTH, HEIGHT, points)


def bar(done: int, running: int, failed: int, total: int) -> Markup:
    """How far a job is: finished, rendered but not finished, and failed pictures of all."""
    parts = []
    start = 0.0
    for kind, count in (("done", done), ("running", running), ("failed", failed)):
        width = 100 * count / total if total else 0.0
        if width:
            parts.append(
                Markup('<rect class="{}" x="{}" y="0" width="{}" height="6"/>').format(
                    kind, f"{start:.2f}", f"{width:.2f}"
                )
            )
        start += width
    label = f"{done:,} of {total:,} pictures done, {failed:,} failed"
    return Markup(
        '<svg class="bar" role="img" aria-label="{}" viewBox="0 0 100 6" '
        'preserveAspectRatio="none">{}</svg>'
    ).format(label, Markup("").join(parts))
