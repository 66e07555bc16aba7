"""A plot of the losses of a run over its steps, on a logarithmic scale."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, EDGE = 900, 480, 48
LEGEND = 180
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
NO_LOSSES = ("step", "seconds_per_step", "gradient_norm")


def plot_losses(metrics: Path, target: Path) -> None:
    """Plot the losses in a `metrics.jsonl` as a PNG; does nothing with fewer than two lines."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    names = [name for name in (rows[0] if rows else {}) if name not in NO_LOSSES]
    values = [row[name] for row in rows for name in names if row.get(name, 0) > 0]
    if len(rows) < 2 or not values:
        return
    low, high = math.log10(min(values)), math.log10(max(values)) + 1e-9
    first, last = rows[0]["step"], rows[-1]["step"]
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    right, bottom = WIDTH - LEGEND, HEIGHT - EDGE
    draw.rectangle((EDGE, EDGE // 2, right, bottom), outline="black")

    def at(step: int, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first)
        up = (math.log10(value) - low) / (high - low)
        return EDGE + across * (right - EDGE), bottom - up * (bottom - EDGE // 2)

    for power in range(math.ceil(low), math.floor(high) + 1):
        y = at(first, 10.0**power)[1]
        draw.line((EDGE, y, right, y), fill="#dddddd")
        draw.text((4, y - 7), f"1e{power}", fill="black", font=font)
    draw.text((EDGE, bottom + 8), f"step {first}", fill="black", font=font)
    draw.text((right, bottom + 8), str(last), fill="black", font=font, anchor="ra")
    for n, name in enumerate(names):
        points = [at(row["step"], row[name]) for row in rows if row.get(name, 0) > 0]
        if len(points) > 1:
            draw.line(points, fill=COLOURS[n % len(COLOURS)], width=2)
        draw.text((right + 10, EDGE // 2 + 16 * n), name, fill=COLOURS[n % len(COLOURS)], font=font)
    picture.save(target)
