"""Vega-Lite specifications as inline SVG that follows the page's light or dark colours."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from html import escape
from typing import Any

# Sentinels: drawn in these colours, then replaced by the page's variables.
_INK, _SOFT, _RULE = "#010203", "#040506", "#070809"
_VARIABLES = {_INK: "var(--ink)", _SOFT: "var(--soft)", _RULE: "var(--rule)"}
PALETTE = ["#2f7fb8", "#d9662b", "#2a9d76", "#b5529b", "#c99a1f", "#6a6fd1", "#8a6d55", "#5aa7a7", "#c0485a", "#7f8c3a"]

CONFIG: dict[str, Any] = {
    "background": None,
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None, "continuousWidth": 340, "continuousHeight": 210, "discreteWidth": {"step": 34}},
    "axis": {
        "labelColor": _SOFT, "titleColor": _INK, "domainColor": _RULE, "tickColor": _RULE, "gridColor": _RULE,
        "gridOpacity": 0.6, "labelFontSize": 11, "titleFontSize": 11.5, "titleFontWeight": "normal",
    },
    "legend": {"labelColor": _SOFT, "titleColor": _INK, "labelFontSize": 11, "titleFontSize": 11.5, "labelLimit": 260},
    "header": {"labelColor": _SOFT, "titleColor": _INK},
    "title": {"color": _INK, "fontSize": 12.5, "fontWeight": "normal", "anchor": "start"},
    "text": {"color": _INK},
    "rule": {"color": _SOFT},
    "range": {"category": PALETTE},
    "line": {"strokeWidth": 2},
}  # fmt: skip


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        out[key] = _merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def figure(plot: Mapping[str, Any]) -> dict[str, str]:
    """A study's plot as svg, caption and name; one that cannot be drawn says so in its caption."""
    name, caption = str(plot.get("name", "")), str(plot.get("caption", ""))
    try:
        return {"svg": _drawn(json.dumps(plot["spec"]), caption), "caption": caption, "name": name}
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # must not hide the verdicts
        problem = "it has no spec" if isinstance(error, KeyError) else error
        return {"svg": "", "caption": f"{caption} (cannot be drawn: {problem})", "name": name}


@lru_cache(maxsize=300)  # drawing takes a hundred times as long as the rest of a page
def _drawn(spec: str, name: str) -> str:
    return to_svg(json.loads(spec), name)


def to_svg(spec: dict[str, Any], name: str = "") -> str:
    """Draw one specification; `name` is what a screen reader says of it.

    Its data stand in it: a specification may come from somebody else's file, and must not make us ask any address.

    Raises
    ------
    ValueError
        If it is not a valid Vega-Lite specification, or its data are an address.
    """
    import vl_convert

    own = {k: v for k, v in (spec.get("config") or {}).items() if k != "view"}
    whole = {**spec, "config": _merge(CONFIG, own)}
    svg = vl_convert.vegalite_to_svg(whole, show_warnings=False, allowed_base_urls=[])
    for sentinel, variable in _VARIABLES.items():
        svg = svg.replace(sentinel, variable)
    svg = re.sub(r'\s(?:xmlns|xmlns:xlink|version)="[^"]*"', "", svg, count=3)
    label = f' aria-label="{escape(name)}"' if name else ""
    return svg.replace("<svg ", f'<svg role="img"{label} ', 1)
