"""Two pictures of numbers: is 90 % right nine times in ten, and do synthetic volumes look like the real ones?

Both are drawn like the contour sheets, with Pillow alone, so that a report needs neither matplotlib nor torch.

    reliability_diagram     accuracy against confidence; below, how many voxels there are in each bin
    distribution_sheet      histograms of intensities and of each structure's volume, real against synthetic
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from voxscore.errors import UserError
from voxscore.evaluation.pictures import (
    BACKGROUND,
    FAINT,
    FRAME,
    GAP_PX,
    MARGIN_PX,
    OVERSAMPLING,
    TEXT,
    Color,
    fit_text,
)

if TYPE_CHECKING:  # a picture of a table needs no torch, which the table's own module imports
    from voxscore.evaluation.calibration import ReliabilityTable

__all__ = ["Population", "distribution_sheet", "reliability_diagram"]

REAL: Color = (0, 190, 255)
SYNTHETIC: Color = (255, 176, 0)
AXIS_PX, TICK_PX = 64, 40  # room for the numbers left of and below a plot
TITLE_PX, CAPTION_PX = 34, 28
DECADES = 5  # of the counts that a reliability diagram shows


@dataclass(frozen=True)
class Population:
    """What is compared of a set of volumes.

    Attributes:
        intensities: of voxels, of any shape; a random part of them will do. Air around a head makes a peak that hides
            the rest: leave it out of both sets.
        volumes: mL of each case (n,), by structure; `label_volumes` measures them.
    """

    intensities: np.ndarray
    volumes: Mapping[str, Sequence[float] | np.ndarray]


@dataclass(frozen=True)
class _Plot:
    """A rectangle of a sheet with linear axes: data from low to high, the second axis upwards."""

    left: int
    top: int
    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height


def reliability_diagram(table: ReliabilityTable, title: str = "") -> Image.Image:
    """Draws accuracy against confidence, and how many voxels stand behind each bin.

    A bin's column ends at its accuracy; the amber step between that and the mean confidence is the error, above the
    accuracy where the network is too sure. The lower plot has a logarithmic scale: nearly all voxels of a scan are in
    the last bin.

    Args:
        table: of the top label or of one class.
        title: heading.

    Returns:
        An RGB picture about 600 pixels wide.

    Raises:
        UserError: the table has no voxels.
    """
    if not table.count.sum():
        raise UserError("reliability table", "has no voxels", "look at the mask")
    size, low = 520, 120
    top = MARGIN_PX + (TITLE_PX if title else 0) + CAPTION_PX
    left = MARGIN_PX + AXIS_PX
    below = top + size + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (left + size + MARGIN_PX, below + low + TICK_PX + MARGIN_PX), BACKGROUND)
    _draw_title(sheet, title)
    upper = _Plot(left, top, size, size, (0, 1), (0, 1))
    lower = _Plot(left, below, size, low, (0, 1), (-DECADES, 0))

    edges = np.linspace(0, 1, len(table.count) + 1)
    for plot in (upper, lower):
        _draw_grid(sheet, plot, np.linspace(0, 1, 6), numbers=plot is lower)
    draw = ImageDraw.Draw(sheet)
    share = table.count / table.count.sum()
    bins = zip(edges, edges[1:], table.confidence, table.accuracy, share, strict=False)
    for start, end, confidence, accuracy, part in bins:
        if not part:
            continue
        _bar(draw, upper, start, end, 0, accuracy, _dim(REAL))
        _bar(draw, upper, start, end, min(accuracy, confidence), max(accuracy, confidence), _dim(SYNTHETIC))
        x = upper.place(start, 0)[0] + 1, upper.place(end, 0)[0] - 2
        for value, color in ((confidence, SYNTHETIC), (accuracy, REAL)):
            y = upper.place(0, value)[1]
            draw.rectangle((x[0], y - 1, x[1], y + 1), fill=color)
        _bar(draw, lower, start, end, -DECADES, max(math.log10(part), -DECADES), _dim(REAL))
    _draw_line(sheet, upper, [(0, 0), (1, 1)], TEXT)

    _draw_numbers(sheet, upper, {value: f"{value:.1f}" for value in np.linspace(0, 1, 6)})
    powers = {float(-decade): f"{10.0**-decade:.6g}" for decade in range(0, DECADES + 1, 2)}
    _draw_numbers(sheet, lower, powers)
    small = ImageFont.load_default(size=14)
    _draw_key(sheet, (left, top - 8), {"accuracy": REAL, "confidence": SYNTHETIC})
    draw.text((left + size, top - 8), f"ECE {table.ece:.4f}", TEXT, ImageFont.load_default(size=16), anchor="rs")
    draw.text((left, below - 8), f"share of {int(table.count.sum()):,} voxels, log scale", FAINT, small, anchor="ls")
    draw.text((left + size / 2, sheet.height - MARGIN_PX + 4), "confidence", FAINT, small, anchor="ms")
    return sheet


def distribution_sheet(real: Population, synthetic: Population, title: str = "") -> Image.Image:
    """Draws histograms of intensity and of each structure's volume, real against synthetic, medians marked.

    Each histogram is a density, so that sets of different size can be compared; both share bins, whose width is
    Freedman and Diaconis's for the smaller set. Intensities beyond the 0.1st and 99.9th percentile of the two sets
    together are not shown.

    Args:
        real: the set that is imitated.
        synthetic: the set that imitates it, with the same structures.
        title: heading.

    Returns:
        An RGB picture about 1000 pixels wide.

    Raises:
        UserError: the structures differ, or a set has no finite values.
    """
    if list(real.volumes) != list(synthetic.volumes):
        fault = f"are {list(real.volumes)} and {list(synthetic.volumes)}"
        raise UserError("structures", fault, "give both sets the same, in one order")
    columns, width, height = 2, 420, 190
    rows = 1 + math.ceil(len(real.volumes) / columns)
    cell = (MARGIN_PX + width + GAP_PX, CAPTION_PX + height + TICK_PX)
    head = MARGIN_PX + (TITLE_PX if title else 0) + CAPTION_PX
    sheet = Image.new("RGB", (columns * cell[0] + GAP_PX, head + rows * cell[1] + 4), BACKGROUND)
    _draw_title(sheet, title)
    cases = [max((len(values) for values in each.volumes.values()), default=0) for each in (real, synthetic)]
    counts = [f" (n = {n})" if n else "" for n in cases]
    _draw_key(sheet, (MARGIN_PX, head - 10), {f"real{counts[0]}": REAL, f"synthetic{counts[1]}": SYNTHETIC})

    whole = columns * cell[0] - MARGIN_PX - GAP_PX
    pair = _finite(real.intensities, "intensities"), _finite(synthetic.intensities, "intensities")
    _draw_histograms(sheet, (MARGIN_PX, head + CAPTION_PX), (whole, height), "intensity", pair, 0.1)
    for i, name in enumerate(real.volumes):
        row, column = divmod(i, columns)
        corner = MARGIN_PX + column * cell[0], head + CAPTION_PX + (1 + row) * cell[1]
        pair = _finite(real.volumes[name], name), _finite(synthetic.volumes[name], name)
        _draw_histograms(sheet, corner, (width, height), f"{name} [mL]", pair, 0.0)
    return sheet


def _finite(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    found = np.asarray(values, dtype=float).ravel()
    found = found[np.isfinite(found)]
    if not found.size:
        raise UserError(name, "has no finite value in one of the sets", "give every structure of every case a number")
    return found


def _draw_histograms(
    sheet: Image.Image,
    corner: tuple[int, int],
    size: tuple[int, int],
    name: str,
    pair: tuple[np.ndarray, np.ndarray],
    tail: float,
) -> None:
    """A plot of two densities; `tail` is the percentage left out on either side."""
    edges = _edges(pair, tail)
    densities = [np.histogram(values, edges)[0] / (len(values) * np.diff(edges)) for values in pair]
    highest = max(float(density.max()) for density in densities)
    plot = _Plot(*corner, *size, (float(edges[0]), float(edges[-1])), (0, 1.08 * highest))
    _draw_grid(sheet, plot, _ticks(*plot.x), numbers=True)

    medians = [float(np.median(values)) for values in pair]
    steps = [
        [(edges[0], 0.0), *zip(np.repeat(edges, 2)[1:-1], np.repeat(density, 2), strict=True), (edges[-1], 0.0)]
        for density in densities
    ]
    for outline, color in zip(steps, (REAL, SYNTHETIC), strict=True):
        _draw_area(sheet, plot, outline, color)
    # Lines after both areas, so that neither set hides the other.
    for outline, median, color in zip(steps, medians, (REAL, SYNTHETIC), strict=True):
        _draw_line(sheet, plot, outline, color)
        _draw_line(sheet, plot, [(median, 0), (median, plot.y[1])], color, dashed=True)

    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(size=16), ImageFont.load_default(size=14)
    x, y = corner[0] + size[0], corner[1] - 8
    texts = [(_short(medians[1]), SYNTHETIC), (" / ", FAINT), (_short(medians[0]), REAL), ("median ", FAINT)]
    for text, color in texts:
        draw.text((x, y), text, color, small, anchor="rs")
        x -= int(small.getlength(text))
    draw.text((corner[0], y), fit_text(name, font, x - corner[0] - 12), TEXT, font, anchor="ls")


def _edges(pair: tuple[np.ndarray, np.ndarray], tail: float) -> np.ndarray:
    low, high = np.percentile(np.concatenate(pair), [tail, 100 - tail])
    if high <= low:
        low, high = low - 0.5, low + 0.5
    smaller = min(pair, key=len)
    spread = float(np.subtract(*np.percentile(smaller, [75, 25])))
    width = 2 * spread / len(smaller) ** (1 / 3)
    bins = math.ceil((high - low) / width) if width > 0 else 20
    return np.linspace(low, high, min(max(bins, 8), 80) + 1)


def _ticks(low: float, high: float) -> np.ndarray:
    """About five round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _dim(color: Color) -> Color:
    """Half-way to the background."""
    return tuple((c + b) // 2 for c, b in zip(color, BACKGROUND, strict=True))  # type: ignore[return-value]


def _bar(
    draw: ImageDraw.ImageDraw, plot: _Plot, start: float, end: float, low: float, high: float, color: Color
) -> None:
    (x0, y0), (x1, y1) = plot.place(start, high), plot.place(end, low)
    if y1 - y0 >= 1:
        draw.rectangle((x0 + 1, y0, x1 - 2, y1 - 1), fill=color)


def _draw_line(
    sheet: Image.Image, plot: _Plot, points: Sequence[tuple[float, float]], color: Color, dashed: bool = False
) -> None:
    """A smooth line through points of the plot."""
    stroke, path = _canvas(plot, points)
    ImageDraw.Draw(stroke).line(path, 255, round(1.6 * OVERSAMPLING), joint="curve")
    if dashed:
        rows = np.asarray(stroke).copy()
        rows[np.arange(len(rows)) // (5 * OVERSAMPLING) % 2 == 1] = 0
        stroke = Image.fromarray(rows)
    sheet.paste(color, (plot.left - 1, plot.top - 1), stroke.reduce(OVERSAMPLING))


def _draw_area(sheet: Image.Image, plot: _Plot, points: Sequence[tuple[float, float]], color: Color) -> None:
    """The inside of a line, a third opaque."""
    inside, path = _canvas(plot, points)
    ImageDraw.Draw(inside).polygon(path, 85)
    sheet.paste(color, (plot.left - 1, plot.top - 1), inside.reduce(OVERSAMPLING))


def _canvas(plot: _Plot, points: Sequence[tuple[float, float]]) -> tuple[Image.Image, list[tuple[float, float]]]:
    """An enlarged mask over the plot and one pixel around it, and the points on it."""
    canvas = Image.new("L", ((plot.width + 2) * OVERSAMPLING, (plot.height + 2) * OVERSAMPLING))
    pixels = [plot.place(*point) for point in points]
    return canvas, [((x - plot.left + 1) * OVERSAMPLING, (y - plot.top + 1) * OVERSAMPLING) for x, y in pixels]


def _draw_grid(sheet: Image.Image, plot: _Plot, ticks: np.ndarray, numbers: bool) -> None:
    """Frame and upright lines, with their numbers below if asked."""
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    bottom = plot.top + plot.height
    for tick in ticks:
        x = round(plot.place(float(tick), 0)[0])
        draw.line((x, plot.top, x, bottom), FRAME)
        if numbers:
            draw.text((x, bottom + 7), f"{tick + 0.0:.6g}", FAINT, font, anchor="ma")
    draw.rectangle((plot.left - 1, plot.top - 1, plot.left + plot.width, bottom), outline=FRAME)


def _draw_numbers(sheet: Image.Image, plot: _Plot, ticks: Mapping[float, str]) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for value, text in ticks.items():
        draw.text((plot.left - 10, plot.place(0, value)[1]), text, FAINT, font, anchor="rm")


def _draw_title(sheet: Image.Image, title: str) -> None:
    if title:
        font = ImageFont.load_default(size=22)
        text = fit_text(title, font, sheet.width - 2 * MARGIN_PX)
        ImageDraw.Draw(sheet).text((MARGIN_PX, MARGIN_PX - 4), text, TEXT, font)


def _draw_key(sheet: Image.Image, place: tuple[int, int], names: Mapping[str, Color]) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    x, y = place
    for name, color in names.items():
        draw.rounded_rectangle((x, y - 12, x + 14, y + 1), 3, fill=color)
        draw.text((x + 22, y), name, TEXT, font, anchor="ls")
        x += 22 + int(font.getlength(name)) + 26
