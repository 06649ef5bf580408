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


def strip(records: list[Any], row: str = "what", *, column: str = "image") -> dict[str, Any]:
    """Images side by side, one line for each value of `row`; a Vega-Lite specification."""
    base = alt.Chart(alt.Data(values=records)).mark_rect().properties(width=42, height=42)
    chart = base.encode(
        alt.X("x:O", axis=None),
        alt.Y("y:O", axis=None),
        alt.Color("v:Q", scale=alt.Scale(scheme="greys"), legend=None),
        alt.Row(f"{row}:N", title=""),
        alt.Column("j:O", title=column),
    )
    return chart.to_dict()
