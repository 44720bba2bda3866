"""Training curves of one run or several as SVG, drawn without any library."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import cycle

# One for each run, legible on white and on black
COLOURS = ("#2a78d6", "#d9622b", "#1c9a74", "#9a5bd0", "#a88400", "#d6457f")
WIDTH, HEIGHT = 300, 210  # of one panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 288, 30, 182  # the rectangle of the lines in it
LEGEND = 26  # height of the legend above the panels
DOTTED = 60  # up to so many epochs, each is a dot that shows its value under the pointer
LOWEST_RATE = 1e-4  # of the highest rate: lower ones, at the end of annealing, are drawn as this
LOGARITHMIC = "Learning rate"
PANELS = {
    "Loss": {"val_loss": "validation", "train_loss": "training"},
    "mIoU": {"val_miou": "validation", "train_miou": "training"},
    "mPA": {"val_mpa": "validation", "train_mpa": "training"},
    LOGARITHMIC: {"lr": ""},
}
CURVE_STYLE = """.curve { font: 13px system-ui, sans-serif; fill: #333 }
.curve .title { font-weight: 600 }
.curve .grid { stroke: #8884; fill: none }
.curve .line { fill: none; stroke-width: 2; stroke-linejoin: round }
.curve .training { stroke-dasharray: 4 3 }
.curve .axis { fill: #666; font-size: 12px }
@media (prefers-color-scheme: dark) { .curve { fill: #ddd } .curve .axis { fill: #aaa } }
@media print { .curve { fill: #333 } .curve .axis { fill: #666 } }"""

Runs = dict[str, list[dict]]  # name -> history: a dict an epoch, with the keys of history.csv


@dataclass
class Line:
    """One curve. meaning: "training", "validation" or ""; points: epoch and value, both finite."""

    run: str
    meaning: str
    colour: str
    points: list[tuple[int, float]]


def curves_svg(runs: Runs) -> str:
    """A whole SVG file: a legend, then loss, mIoU, mPA and learning rate over epochs."""
    legend, panels = "", ""
    for name, colour in with_colours(runs):
        legend += f'<tspan dx="12" fill="{colour}">&#9632;</tspan> {escape(name)}'
    for index, panel in enumerate(curve_panels(runs)):
        corner = f"{index % 2 * WIDTH} {LEGEND + index // 2 * HEIGHT}"
        panels += f'<g transform="translate({corner})">{panel}</g>\n'
    width, height = 2 * WIDTH, LEGEND + 2 * HEIGHT
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<style>:root {{ color-scheme: light dark }}\n{CURVE_STYLE}</style>\n"
        f'<text class="curve" x="{LEFT - 12}" y="18">{legend}'
        '<tspan dx="16" class="axis">dashed: training, on its augmented batches</tspan></text>\n'
        f"{panels}</svg>\n"
    )


def with_colours(runs: Runs) -> Iterator[tuple[str, str]]:
    """(name, colour of its lines) of each run."""
    return zip(runs, cycle(COLOURS), strict=False)


def curve_panels(runs: Runs) -> list[str]:
    """Four <svg> elements, for a page that holds CURVE_STYLE once."""
    return [draw_panel(title, lines_of(runs, keys)) for title, keys in PANELS.items()]


def lines_of(runs: Runs, keys: dict[str, str]) -> list[Line]:
    """A line for each run and each key in its history. keys: column of history.csv -> meaning."""
    lines = []
    for run, colour in with_colours(runs):
        for key, meaning in keys.items():
            known = [row for row in runs[run] if row.get(key) is not None]
            points = [(row["epoch"], row[key]) for row in known if math.isfinite(row[key])]
            if points:
                lines.append(Line(run, meaning, colour, points))
    return lines


def draw_panel(title: str, lines: list[Line]) -> str:
    """One <svg>: the title, a grid of values, epochs below, and the lines."""
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    if not lines:
        return f'<svg class="curve" {size}><text x="{LEFT}" y="18">{title}: none</text></svg>'
    epochs, values = zip(*(point for line in lines for point in line.points), strict=True)
    logarithmic = title == LOGARITHMIC
    lowest = max(LOWEST_RATE * max(values), 1e-12)

    def scaled(value: float) -> float:
        return math.log10(max(value, lowest)) if logarithmic else value

    first, last = min(epochs), max(epochs)
    low, high = scaled(min(values)), scaled(max(values))
    margin = 0.06 * (high - low) or (0.5 if logarithmic else 0.05 * abs(high) or 0.5)
    low, high = low - margin, high + margin

    def place(epoch: float, value: float) -> tuple[float, float]:
        """x and y in pixels."""
        right = (epoch - first) / (last - first) if last > first else 0.5
        down = (high - scaled(value)) / (high - low)
        return LEFT + (RIGHT - LEFT) * right, TOP + (BOTTOM - TOP) * down

    drawn = f'<text class="title" x="{LEFT}" y="18">{title}</text>\n'
    for height in round_numbers(low, high, 6, finest=1 if logarithmic else 0):
        tick = 10.0**height if logarithmic else height
        _, y = place(first, tick)
        drawn += (
            f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/><text class="axis" '
            f'x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.5g}</text>\n'
        )
    for tick in round_numbers(first, last, 7, finest=1):
        x, _ = place(tick, values[0])
        middle = f'x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle"'
        drawn += f'<text class="axis" {middle}>{tick:.0f}</text>\n'
    ends = []
    for line in lines:
        drawn += draw_line(line, place)
        begin, end = line.points[0][1], line.points[-1][1]
        ends.append(f"{line.run} {line.meaning} from {begin:.4g} to {end:.4g}")
    label = f"{title} over {last - first + 1} epochs: {'; '.join(ends)}"
    return f'<svg class="curve" role="img" aria-label="{escape(label)}" {size}>\n{drawn}</svg>'


def draw_line(line: Line, place: Callable) -> str:
    """A polyline, and a dot for each of at most DOTTED epochs. place: (epoch, value) -> pixels."""
    path, dots = "", ""
    for epoch, value in line.points:
        x, y = place(epoch, value)
        path += f"{x:.1f},{y:.1f} "
        label = f"{escape(line.run)}, epoch {epoch}: {line.meaning} {value:.4g}"
        circle = f'cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{line.colour}"'
        dots += f"<circle {circle}><title>{label}</title></circle>\n"
    style = f'class="line {line.meaning}" stroke="{line.colour}"'
    drawn = f'<polyline {style} points="{path.strip()}"/>\n'
    return drawn + dots if len(line.points) <= DOTTED else drawn


def round_numbers(low: float, high: float, count: int, finest: float) -> list[float]:
    """About `count` round numbers in [low, high]; their step is 1, 2 or 5 times a power of ten.

    The step is `finest` or more.
    """
    rough = max((high - low) / count, finest)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    multiples = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(multiple * step, 12) for multiple in multiples]
