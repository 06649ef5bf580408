"""Small images as plots: records that an `Artifact` can hold, and a strip drawn from them."""

from typing import Any

import altair as alt
from torch import Tensor
from torch.nn import functional as F

SIDE = 14  # larger images are averaged down: a plot holds one record a pixel


def pixel_records(images: Tensor, what: str) -> list[Any]:
    """One record a pixel of images (n, C, H, W): what, j (image), x, y, v (grey value)."""
    grey = images.detach().mean(1, keepdim=True)
    small = F.adaptive_avg_pool2d(grey, (min(SIDE, grey.shape[2]), min(SIDE, grey.shape[3])))[:, 0].cpu()
    return [
        {"what": what, "j": j, "x": x, "y": y, "v": round(v, 2)}
        for j, image in enumerate(small.tolist())
        for y, row in enumerate(image)
        for x, v in enumerate(row)
    ]


def strip(records: list[Any], row: str = "what", *, column: str = "image", color: str | None = None) -> dict[str, Any]:
    """Images side by side, one line for each value of `row`; a Vega-Lite specification.

    Parameters
    ----------
    color
        Field whose value gives an image its hue; None: all are grey.
    """
    base = alt.Chart(alt.Data(values=records)).mark_rect().properties(width=42, height=42)
    ink: tuple[Any, ...] = (alt.Color("v:Q", scale=alt.Scale(scheme="greys"), legend=None),)
    if color is not None:
        scale = alt.Scale(domain=[0, 1], range=[0, 1], clamp=True)
        ink = alt.Color(f"{color}:N"), alt.Opacity("v:Q", scale=scale, legend=None)
    chart = base.encode(
        alt.X("x:O", axis=None),
        alt.Y("y:O", axis=None),
        *ink,
        alt.Row(f"{row}:N", title=""),
        alt.Column("j:O", title=column),
    )
    return chart.to_dict()


def curves(rows: list[dict[str, Any]], x: str, y: str, *, log: bool = False, color: str = "arm", **more: str) -> Any:
    """Mean of `value` over seeds against `step`, or another field that `x` names: ``"m: prototypes"``."""
    field, _, title = x.rpartition(": ")
    axis = alt.X(f"{field or 'step'}:Q", title=title, scale=alt.Scale(type="log") if log else alt.Scale())
    lines = alt.Chart(alt.Data(values=rows)).mark_line()
    return lines.encode(axis, alt.Y("mean(value):Q", title=y), alt.Color(f"{color}:N"), **more)


def dots(rows: list[dict[str, Any]], value: str, order: list[str], *, color: str = "metric") -> dict[str, Any]:
    """One dot a seed, one line an arm in the given order."""
    x = alt.X("value:Q", title=value, scale=alt.Scale(zero=False))
    points = alt.Chart(alt.Data(values=rows)).mark_point()
    return points.encode(x, alt.Y("arm:N", sort=order, title=""), alt.Color(f"{color}:N")).to_dict()
