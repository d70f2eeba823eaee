"""Many cases at a glance: is this set of volumes what I asked for?

One look at a sheet finds what no score names: volumes that repeat, that are cut off, empty or turned, labels that lie
beside their structure. So every case is drawn in the same way, whole and on one scale in millimetres, as three slices
through its structure: plain in the upper row, with the labels in the lower one. Orientation is that of the contour
sheets, whatever the stored axes: patient right on the viewer's left, anterior on the left of a sagittal slice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from voxscore.errors import UserError
from voxscore.evaluation.pictures import (
    _VIEWS,
    BACKGROUND,
    BAR_MM,
    FAINT,
    FRAME,
    MARGIN_PX,
    OVERSAMPLING,
    TEXT,
    Color,
    _check,
    _draw_contours,
    _grey,
    _Scene,
    _scene,
    _slice,
    _window,
    fit_text,
)

__all__ = ["contact_sheet"]

WIDTH_PX = 2400
CASE_MAX_PX = 760  # width and about height: few cases are not blown up without end
MOST, MOST_COLUMNS = 256, 24  # more would be specks
ASPECT = 1.5  # width to height of the cases together, about
CASE_GAP_PX, VIEW_GAP_PX, PAD_PX = 20, 3, 6
TITLE_PX, NAME_PX, LEGEND_PX = 40, 28, 32
VIEWS = ("sagittal", "coronal", "axial")


def contact_sheet(
    items: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    colors: Mapping[int, Color],
    names: Mapping[int, str],
    title: str = "",
) -> Image.Image:
    """Draws a set of cases, each as sagittal, coronal and axial slice without and with label contours.

    Each slice is the one with most labelled voxels along its axis, the middle one of a case without labels. Grey levels
    run from the 0.5th to the 99.5th percentile of each case. Up to about 64 cases can be read.

    Args:
        items: of each case its name, intensities (X, Y, Z), integer labels (X, Y, Z) with 0 as background, and affine
            from voxel index to RAS+ mm (4, 4).
        colors: red, green, blue (0 to 255) of every label that occurs; an entry for 0 is passed over.
        names: name of each label for the legend.
        title: heading.

    Returns:
        An RGB picture at most 2400 pixels wide.

    Raises:
        UserError: there is no case or there are more than 256, the shapes or the affine of one do not fit, or a label
            has no colour.
    """
    if not 1 <= len(items) <= MOST:
        raise UserError("contact sheet", f"has {len(items)} cases", f"give 1 to {MOST}")
    scenes = [_case(*item, colors) for item in items]
    extents = [_extent(scene) for scene in scenes]
    across = max(sum(extent[_VIEWS[view][0]] for view in VIEWS) for extent in extents)
    down = max(2 * max(extent[_VIEWS[view][1]] for view in VIEWS) for extent in extents)
    columns = _columns(len(items), math.sqrt(len(items) * ASPECT * down / across))
    rows = math.ceil(len(items) / columns)
    room = (WIDTH_PX - 2 * MARGIN_PX + CASE_GAP_PX) // columns - CASE_GAP_PX
    width = min(room, CASE_MAX_PX)
    scale = min((width - 2 * PAD_PX - 2 * VIEW_GAP_PX) / across, CASE_MAX_PX / down)
    height = math.ceil(down * scale) + VIEW_GAP_PX + 2 * PAD_PX

    top = MARGIN_PX + (TITLE_PX if title else 0)
    inner = columns * (width + CASE_GAP_PX) - CASE_GAP_PX
    bottom = top + rows * (NAME_PX + height + CASE_GAP_PX)
    counts = {label: sum(scene.counts.get(label, 0) for scene in scenes) for label in colors if label != 0}
    lines = _legend(counts, names, inner)
    sheet = Image.new("RGB", (inner + 2 * MARGIN_PX, bottom + LEGEND_PX * (len(lines) + 1) + MARGIN_PX), BACKGROUND)
    if title:
        font = ImageFont.load_default(size=28)
        ImageDraw.Draw(sheet).text((MARGIN_PX, MARGIN_PX - 6), fit_text(title, font, inner), TEXT, font)
    for i, ((name, *_), scene) in enumerate(zip(items, scenes, strict=True)):
        row, column = divmod(i, columns)
        x, y = MARGIN_PX + column * (width + CASE_GAP_PX), top + row * (NAME_PX + height + CASE_GAP_PX)
        _draw_case(sheet, (x, y + NAME_PX), (width, height), name, scene, scale, colors)
    _draw_legend(sheet, bottom, lines, counts, colors, scale)
    return sheet


def _case(
    name: str, image: np.ndarray, labelmap: np.ndarray, affine: np.ndarray, colors: Mapping[int, Color]
) -> _Scene:
    """The whole volume, and the place where its slices have most labelled voxels."""
    image, labelmap, affine = np.asarray(image), np.asarray(labelmap), np.asarray(affine, dtype=float)
    try:
        counts = _check(image, labelmap, affine, colors)
    except UserError as error:
        raise UserError(f"{name}: {error.subject}", error.fault, error.remedy) from error
    scene = _scene(image, labelmap, None, affine, counts, None, math.inf)
    if not counts:
        return scene
    profiles = [np.count_nonzero(scene.labels, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    return replace(scene, center=np.array([int(profile.argmax()) for profile in profiles]))


def _extent(scene: _Scene) -> np.ndarray:
    """Size of the volume along R, A and S, mm."""
    return np.array(scene.image.shape) * scene.size


def _columns(count: int, ideal: float) -> int:
    """The number of columns near the ideal that leaves the fewest places empty."""
    near = {min(max(round(ideal) + i, 1), count, MOST_COLUMNS) for i in (-1, 0, 1)}
    return min(near, key=lambda columns: (-count % columns, abs(math.log(columns / ideal))))


def _draw_case(
    sheet: Image.Image,
    place: tuple[int, int],
    size: tuple[int, int],
    name: str,
    scene: _Scene,
    scale: float,
    colors: Mapping[int, Color],
) -> None:
    """A frame with the three slices side by side, twice, in its middle."""
    (x, y), (width, height) = place, size
    window = _window(scene)
    px = np.maximum(np.floor(_extent(scene) * scale).astype(int), 1)
    card = Image.new("RGB", size)
    left = (width - sum(int(px[_VIEWS[view][0]]) for view in VIEWS) - 2 * VIEW_GAP_PX) // 2
    for view in VIEWS:
        across, down = (int(px[axis]) for axis in _VIEWS[view][:2])
        plain = _grey(_slice(scene.image, scene, view), window, (across * OVERSAMPLING, down * OVERSAMPLING))
        labelled = plain.copy()
        _draw_contours(labelled, _slice(scene.labels, scene, view), colors)
        top = (height - 2 * down - VIEW_GAP_PX) // 2
        card.paste(plain.reduce(OVERSAMPLING), (left, top))
        card.paste(labelled.reduce(OVERSAMPLING), (left, top + down + VIEW_GAP_PX))
        left += across + VIEW_GAP_PX
    sheet.paste(card, place)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=FRAME)
    font = ImageFont.load_default(size=18)
    draw.text((x, y - 8), fit_text(name, font, width), TEXT, font, anchor="ls")


def _legend(counts: Mapping[int, int], names: Mapping[int, str], width: int) -> list[list[tuple[int, str, int]]]:
    """Lines of (label, text, place across), as many entries in each as fit."""
    font = ImageFont.load_default(size=20)
    lines: list[list[tuple[int, str, int]]] = []
    x = width
    for label in counts:
        text = fit_text(names.get(label, f"label {label}"), font, width - 28)
        length = 28 + int(font.getlength(text))
        if x + length > width:
            lines.append([])
            x = 0
        lines[-1].append((label, text, x))
        x += length + 36
    return lines


def _draw_legend(
    sheet: Image.Image,
    top: int,
    lines: Sequence[Sequence[tuple[int, str, int]]],
    counts: Mapping[int, int],
    colors: Mapping[int, Color],
    scale: float,
) -> None:
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(size=20), ImageFont.load_default(size=16)
    middle = top + LEGEND_PX // 2
    for line in lines:
        for label, text, place in line:
            x = MARGIN_PX + place
            swatch = (x, middle - 9, x + 18, middle + 9)
            if counts[label]:
                draw.rounded_rectangle(swatch, 4, fill=tuple(colors[label]))
            else:
                draw.rounded_rectangle(swatch, 4, outline=FAINT)
            draw.text((x + 28, middle), text, TEXT if counts[label] else FAINT, font, anchor="lm")
        middle += LEGEND_PX
    x = MARGIN_PX + round(BAR_MM * scale)
    draw.rectangle((MARGIN_PX, middle - 1, x, middle + 1), fill=TEXT)
    draw.text((x + 10, middle), f"{BAR_MM:g} mm", FAINT, small, anchor="lm")
    x += 10 + int(small.getlength(f"{BAR_MM:g} mm")) + 36
    note = "sagittal (anterior left), coronal and axial (patient right on the left)"
    draw.text((x, middle), fit_text(note, small, sheet.width - MARGIN_PX - x), FAINT, small, anchor="lm")
