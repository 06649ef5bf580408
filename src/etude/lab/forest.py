"""The forest plot: for every claim our effect with its interval, the margin, and the paper's own figure.

Claims have units of their own, so every row has a scale of its own; the shaded side of the margin is where
the claim holds. The drawing carries classes, no colours: the page's style sheet gives them for light and dark.
"""

from dataclasses import dataclass
from html import escape

from etude.lab.judge import Verdict

ROW, PAD = 34.0, 12.0


@dataclass(frozen=True)
class Scale:
    """A row's linear scale, from values to pixels."""

    low: float
    high: float
    width: float

    def __call__(self, value: float) -> float:
        return PAD + (value - self.low) / (self.high - self.low) * (self.width - 2 * PAD)

    def clip(self, value: float) -> float:
        return min(self.width - PAD, max(PAD, self(value)))


def scale_of(v: Verdict, paper: float | None, width: float) -> Scale:
    """A scale that shows interval, margin and zero; the paper's figure too unless it lies far outside."""
    assert v.effect is not None
    assert v.low is not None
    assert v.high is not None
    assert v.margin is not None
    margins = [-v.margin, v.margin] if v.relation == "within" else [v.margin]
    points = [v.low, v.high, 0.0, *margins]
    low, high = min(points), max(points)
    span = high - low or abs(v.effect) or 1.0
    if paper is not None and low - 1.5 * span <= paper <= high + 1.5 * span:
        low, high = min(low, paper), max(high, paper)
        span = high - low or span
    return Scale(low - 0.12 * span, high + 0.12 * span, width)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _row(v: Verdict, paper: float | None, y: float, width: float) -> str:
    assert v.effect is not None
    assert v.low is not None
    assert v.high is not None
    assert v.margin is not None
    s = scale_of(v, paper, width)
    mid = y + ROW / 2
    edges = {
        "greater": (v.margin, s.high), "less": (s.low, v.margin), "within": (-v.margin, v.margin),
    }[v.relation or "greater"]  # fmt: skip
    left, right = s.clip(edges[0]), s.clip(edges[1])
    parts = [
        f'<rect class="holds-zone" x="{left:.1f}" y="{y + 5:.1f}" width="{max(1.5, right - left):.1f}" '
        f'height="{ROW - 10:.1f}"/>',
        f'<line class="zero" x1="{s(0):.1f}" x2="{s(0):.1f}" y1="{y + 3:.1f}" y2="{y + ROW - 3:.1f}"/>',
    ]
    for edge in {v.margin, -v.margin} if v.relation == "within" else {v.margin}:
        parts.append(
            f'<line class="margin" x1="{s(edge):.1f}" x2="{s(edge):.1f}" y1="{y + 5:.1f}" y2="{y + ROW - 5:.1f}"/>'
        )
    word = v.verdict or "none"
    parts.append(
        f'<line class="interval {word}" x1="{s(v.low):.1f}" x2="{s(v.high):.1f}" y1="{mid:.1f}" y2="{mid:.1f}"/>'
        f'<circle class="effect {word}" cx="{s(v.effect):.1f}" cy="{mid:.1f}" r="5"/>'
    )
    if paper is not None:
        x = s.clip(paper)
        if abs(x - s(paper)) < 0.5:
            parts.append(f'<path class="paper" d="M{x:.1f} {mid - 7:.1f}l6 7l-6 7l-6 -7z"/>')
        else:
            turn = 1 if s(paper) > x else -1
            parts.append(f'<path class="paper" d="M{x:.1f} {mid:.1f}l{-8 * turn} -6v12z"/>')
    title = (
        f"{v.claim}, {v.protocol}: effect {_number(v.effect)} [{_number(v.low)}, {_number(v.high)}], "
        f"margin {v.margin:g}" + (f", paper {_number(paper)}" if paper is not None else "")
    )
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


def forest_row(v: Verdict, paper: float | None, width: float = 420.0) -> str:
    """One claim's strip as a standalone SVG; empty when there is no effect to draw."""
    if v.effect is None or v.low is None or v.high is None or v.margin is None:
        return ""
    label = escape(f"{v.claim} {v.verdict or 'no verdict'}: effect {_number(v.effect)}")
    body = _row(v, paper, 0.0, width)
    return f'<svg class="forest" viewBox="0 0 {width:g} {ROW:g}" role="img" aria-label="{label}">{body}</svg>'
