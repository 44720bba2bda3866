"""The history of one run or several as curves: SVG, drawn without any library."""

import math
from html import escape

COLOURS = ("#2a78d6", "#d9622b", "#1c9a74", "#9a5bd0", "#a88400", "#d6457f")  # of runs; legible on white and on black
WIDTH, HEIGHT = 300, 210  # of one panel
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 28  # its margins
DOTTED = 60  # epochs up to which each is a dot that tells its value under the pointer
LOWEST_RATE = 1e-4  # of the highest learning rate: what lies below, as at an annealed end, is drawn there
PANELS = (
    ("Loss", {"val_loss": "validation", "train_loss": "training"}),
    ("mIoU", {"val_miou": "validation"}),
    ("mPA", {"val_mpa": "validation"}),
    ("Learning rate", {"lr": ""}),
)
STYLE = """<style>.curve{font:13px system-ui,sans-serif;fill:#333}.curve .title{font-weight:600}
.curve .grid{stroke:#8884;fill:none}.curve .line{fill:none;stroke-width:2;stroke-linejoin:round}
.curve .axis{fill:#666;font-size:12px}
@media (prefers-color-scheme:dark){.curve{fill:#ddd}.curve .axis{fill:#aaa}}
@media print{.curve{fill:#333}.curve .axis{fill:#666}}</style>"""

Runs = dict[str, list[dict]]  # name -> history: a dict an epoch, with the keys of history.csv


def curves_svg(runs: Runs) -> str:
    """A whole SVG file: a legend, then loss, mIoU, mPA and learning rate over epochs."""
    places = [(column * WIDTH, 26 + row * HEIGHT) for row in range(2) for column in range(2)]
    panels = "".join(
        panel.replace("<svg ", f'<svg x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for panel, (x, y) in zip(curve_panels(runs), places, strict=True)
    )
    legend = "".join(
        f'<tspan dx="{12 if index else 0}" fill="{colour_of(index)}">&#9632;</tspan> {escape(name)}'
        for index, name in enumerate(runs)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {26 + 2 * HEIGHT}" width="{2 * WIDTH}" '
        f'height="{26 + 2 * HEIGHT}"><style>:root{{color-scheme:light dark}}</style>{STYLE}'
        f'<text class="curve" x="{LEFT}" y="18">{legend}<tspan dx="16" class="axis">dashed: training</tspan></text>'
        f"{panels}</svg>\n"
    )


def curve_panels(runs: Runs) -> list[str]:
    """Four <svg> elements, for a page that holds STYLE once."""
    return [_panel(title, keys, runs) for title, keys in PANELS]


def colour_of(index: int) -> str:
    """The colour of the run at this place."""
    return COLOURS[index % len(COLOURS)]


def _panel(title: str, keys: dict[str, str], runs: Runs) -> str:
    logarithmic = title == "Learning rate"
    drawn = {}  # (run, key) -> points (epoch, value)
    for name, history in runs.items():
        for key in keys:
            known = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
            drawn[name, key] = [(epoch, float(value)) for epoch, value in known if math.isfinite(value)]
    values = [value for points in drawn.values() for _, value in points]
    epochs = [epoch for points in drawn.values() for epoch, _ in points]
    if not values:
        return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}"><text x="{LEFT}" y="18">{title}: none</text></svg>'

    def scaled(value: float) -> float:
        return math.log10(max(value, LOWEST_RATE * max(values), 1e-12)) if logarithmic else value

    low, high = min(map(scaled, values)), max(map(scaled, values))
    room = (high - low) * 0.06 or (0.5 if logarithmic else abs(high) * 0.05 or 0.5)
    low, high = low - room, high + room
    first, last = min(epochs), max(epochs)

    def x_of(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y_of(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - scaled(value)) / (high - low)

    parts = [f'<text class="title" x="{LEFT}" y="18">{title}</text>']
    for tick in [10.0**e for e in range(math.ceil(low), math.floor(high) + 1)] if logarithmic else _ticks(low, high, 6):
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.5g}</text>')
    for tick in _ticks(first, last, 7):
        if tick == int(tick):
            parts.append(
                f'<text class="axis" x="{x_of(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:.0f}</text>'
            )
    for (name, key), points in drawn.items():
        colour, dash = colour_of(list(runs).index(name)), ' stroke-dasharray="4 3"' if key == "train_loss" else ""
        line = " ".join(f"{x_of(epoch):.1f},{y_of(value):.1f}" for epoch, value in points)
        parts.append(f'<polyline class="line" stroke="{colour}"{dash} points="{line}"/>')
        for epoch, value in points if len(points) <= DOTTED else []:
            place = f'cx="{x_of(epoch):.1f}" cy="{y_of(value):.1f}" r="2.5" fill="{colour}"'
            label = f"{escape(name)}, epoch {epoch}: {keys[key]} {value:.4g}"
            parts.append(f"<circle {place}><title>{label}</title></circle>")
    about = "; ".join(
        f"{name} {keys[key]} from {p[0][1]:.4g} to {p[-1][1]:.4g}" for (name, key), p in drawn.items() if p
    )
    label = escape(f"{title} over {last - first + 1} epochs: {about}", quote=True)
    return f'<svg class="curve" role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high]."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
