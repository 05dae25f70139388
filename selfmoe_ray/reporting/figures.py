"""The report's figures as inline SVG; colours are the page's CSS variables, so both colour schemes work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Point = tuple[float, float]

SERIES = 8
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 44
_MAX_POINTS = 240


def line_chart(lines: Mapping[str, Sequence[Point]], title: str, x_title: str, y_title: str) -> Markup:
    """One line per name over a shared pair of axes; long lines are drawn as means of equal chunks.

    Lines differ in colour and in dash, so that the figure reads without colour.
    """
    shown = {name: _thin(points) for name, points in lines.items() if points}
    if not shown:
        return Markup("")
    every = [point for points in shown.values() for point in points]
    x_ticks = nice_ticks(min(x for x, _ in every), max(x for x, _ in every))
    y_ticks = nice_ticks(min(y for _, y in every), max(y for _, y in every))
    x_scale = _Scale(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - _RIGHT)
    y_scale = _Scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(x_ticks, y_ticks, x_scale, y_scale, x_title, y_title)]
    for index, (name, points) in enumerate(shown.items()):
        parts.append(_line(index, name, [(x_scale(x), y_scale(y)) for x, y in points]))
    return _svg(_WIDTH, _HEIGHT, title, "chart", parts)


def stacked_bars(rows: Mapping[str, Mapping[str, int]], title: str) -> Markup:
    """One horizontal bar per name, split into its parts; every bar has the same scale."""
    longest = max((sum(parts.values()) for parts in rows.values()), default=0)
    if not longest:
        return Markup("")
    row_height, label_width, width = 30, 96, 640
    scale = _Scale(0, longest, 0, width - label_width - 60)
    drawn: list[Markup] = []
    for row, (name, parts) in enumerate(rows.items()):
        top, start = row * row_height, 0
        drawn.append(_text(label_width - 8, top + 20, name, "end"))
        for index, (part, count) in enumerate(parts.items()):
            left, bar = label_width + scale(start), scale(count)
            drawn.append(_rect(f"fill-{index % SERIES}", left, top + 5, bar, 20, f"{part}: {count}"))
            start += count
        drawn.append(_text(label_width + scale(start) + 6, top + 20, f"{start:,}", "start"))
    return _svg(width, row_height * len(rows) + 4, title, "bars", drawn)


def layer_heat_map(shares: Sequence[Sequence[float]], experts: Sequence[str], title: str) -> Markup:
    """A cell per layer and expert; shares: [layers][experts] in 0..1, darker is more."""
    cell_width, cell_height, label_width = 380 / max(len(shares), 1), 22, 92
    drawn: list[Markup] = []
    for row, expert in enumerate(experts):
        drawn.append(_text(label_width - 6, row * cell_height + 16, expert, "end"))
    for layer, of_layer in enumerate(shares):
        left = label_width + layer * cell_width
        for row, share in enumerate(of_layer):
            hover = f"layer {layer}, {experts[row]}: {share:.1%}"
            top = row * cell_height
            drawn.append(_rect("heat", left, top, cell_width - 0.6, cell_height - 1, hover, share))
        if layer % max(1, math.ceil(len(shares) / 8)) == 0:
            drawn.append(_text(left + cell_width / 2, len(experts) * cell_height + 14, str(layer), "middle"))
    height = len(experts) * cell_height + 34
    drawn.append(_text(label_width + 190, height - 4, "decoder layer", "middle"))
    return _svg(480, height, title, "layers", drawn)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that enclose `low`..`high`, roughly `about` of them."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 10) for index in range(first, last + 1)]


class _Scale:
    """A linear map from data to picture."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self._low, self._start = low, start
        self._factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._factor


def _thin(points: Sequence[Point]) -> list[Point]:
    size = math.ceil(len(points) / _MAX_POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _axes(
    x_ticks: list[float], y_ticks: list[float], x_scale: _Scale, y_scale: _Scale, x_title: str, y_title: str
) -> Markup:
    drawn = []
    for tick in y_ticks:
        height = y_scale(tick)
        drawn.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
            .format(_LEFT, _WIDTH - _RIGHT, height, height)
        )  # fmt: skip
        drawn.append(_text(_LEFT - 6, height + 4, f"{tick:g}", "end"))
    for tick in x_ticks:
        drawn.append(_text(x_scale(tick), _HEIGHT - _BOTTOM + 17, f"{tick:g}", "middle"))
    drawn.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_title, "middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    drawn.append(
        Markup('<text x="12" y="{0:.1f}" text-anchor="middle" transform="rotate(-90 12 {0:.1f})">{1}</text>')
        .format(middle, y_title)
    )  # fmt: skip
    return Markup("").join(drawn)


def _line(index: int, name: str, points: Sequence[Point]) -> Markup:
    colour = index % SERIES
    if len(points) == 1:
        return Markup('<circle class="fill-{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
            colour, *points[0], name
        )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline class="line-{}" stroke-dasharray="{}" points="{}"><title>{}</title></polyline>').format(
        colour, _DASHES[index % len(_DASHES)], path, name
    )


def _rect(kind: str, x: float, y: float, width: float, height: float, hover: str, opacity: float = 1.0) -> Markup:
    return Markup(
        '<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill-opacity="{:.3f}">'
        "<title>{}</title></rect>"
    ).format(kind, x, y, width, height, opacity, hover)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _svg(width: int, height: int, title: str, kind: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        kind, width, height, title, Markup("").join(parts)
    )


def legend(names: Sequence[str], kind: str) -> Markup:
    """The key of a figure; kind: "line" (with dashes) or "fill"."""
    items = []
    for index, name in enumerate(names):
        colour = index % SERIES
        mark = (
            Markup('<line class="line-{}" stroke-dasharray="{}" x1="0" x2="28" y1="7" y2="7"/>').format(
                colour, _DASHES[index % len(_DASHES)]
            )
            if kind == "line"
            else Markup('<rect class="fill-{}" width="14" height="14" x="7"/>').format(colour)
        )
        items.append(
            Markup('<li><svg class="key" viewBox="0 0 28 14" aria-hidden="true">{}</svg>{}</li>').format(
                mark, escape(name)
            )
        )
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))
