"""The sheet must show the same for every stored orientation, and put the patient's right on the left."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import permutations, product

import numpy as np
import pytest
from PIL import Image

from voxscore.errors import UserError
from voxscore.evaluation.pictures import contour_sheet, montage

COLORS = {1: (255, 176, 0), 2: (0, 190, 255)}
NAMES = {1: "anterior", 2: "posterior"}
AFFINE = np.array([[0.9, 0.05, 0, -20.3], [-0.04, 1.1, 0.1, 7.7], [0, -0.1, 2.5, 3.1], [0, 0, 0, 1]])


@pytest.fixture
def scene():
    """An asymmetric RAS volume (20, 26, 12) with two labels."""
    image = np.random.default_rng(0).normal(size=(20, 26, 12)).cumsum(0).cumsum(1)
    labelmap = np.zeros(image.shape, np.int16)
    labelmap[4:10, 5:14, 3:8] = 1
    labelmap[4:10, 14:19, 3:7] = 2
    return image, labelmap


def restore(volume, affine, order, signs):
    """The same physical volume stored with other axes: new axis i is old axis order[i], reversed if < 0."""
    moved = volume.transpose(order)[tuple(slice(None, None, s) for s in signs)]
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        to_old[old, new] = sign
        to_old[old, 3] = volume.shape[old] - 1 if sign < 0 else 0
    return moved, affine @ to_old


def near(picture, color, tolerance=12):
    """Where a picture shows a colour, (rows, columns)."""
    return (np.abs(np.asarray(picture, int) - color) <= tolerance).all(axis=-1)


def colored(picture):
    """Number of pixels clearly not grey."""
    pixels = np.asarray(picture, int)
    return int((np.ptp(pixels, axis=-1) > 24).sum())


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_stored_orientation_does_not_show(scene, order):
    expected = np.asarray(contour_sheet(*scene, AFFINE, COLORS, NAMES, "case"))
    for signs in product([1, -1], repeat=3):
        image, affine = restore(scene[0], AFFINE, order, signs)
        labelmap, _ = restore(scene[1], AFFINE, order, signs)
        picture = contour_sheet(image, labelmap, affine, COLORS, NAMES, "case")
        assert np.array_equal(np.asarray(picture), expected)


def test_a_caption_half_way_between_two_digits_does_not_show_the_orientation_either():
    """10 * 0.7 - 29.55 is -22.55 when read from one end and -22.549999... from the other."""
    image, affine = np.zeros((20, 26, 12)), np.diag([0.7, 1.1, 2.5, 1.0])
    affine[0, 3] = -29.55
    turned, other = restore(image, affine, (0, 1, 2), (-1, 1, 1))
    first = contour_sheet(image, image.astype(int), affine, COLORS, NAMES)
    second = contour_sheet(turned, turned.astype(int), other, COLORS, NAMES)
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_center_is_a_stored_index(scene):
    expected = contour_sheet(*scene, AFFINE, COLORS, NAMES, center=(6, 9, 4))
    image, affine = restore(scene[0], AFFINE, (2, 0, 1), (-1, 1, -1))
    labelmap, _ = restore(scene[1], AFFINE, (2, 0, 1), (-1, 1, -1))
    picture = contour_sheet(image, labelmap, affine, COLORS, NAMES, center=(12 - 1 - 4, 6, 26 - 1 - 9))
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    elsewhere = contour_sheet(*scene, AFFINE, COLORS, NAMES, center=(15, 20, 9))
    assert not np.array_equal(np.asarray(elsewhere), np.asarray(expected))


def panels(picture):
    """Coronal, sagittal and axial quarters without caption and legend, for a cube."""
    half_x, half_y = picture.width // 2, picture.height // 2
    w, h = picture.size
    boxes = ((0, 0, half_x, half_y), (half_x, 0, w, half_y), (0, half_y, half_x, h))
    return [picture.crop(box) for box in boxes]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_right_anterior_and_superior_are_left_and_on_top(axis):
    """A label on the positive side of one RAS axis: x is right, y anterior, z superior."""
    image = np.zeros((30, 30, 30))
    labelmap = np.zeros(image.shape, int)
    place = [slice(13, 17)] * 3
    place[axis] = slice(22, 26)
    labelmap[tuple(place)] = 1
    picture = contour_sheet(image, labelmap, np.eye(4), COLORS, NAMES, zoom_mm=math.inf)
    expected = {  # of the colour's centre in its panel: left of the middle, above the middle
        0: [("left", None), None, ("left", None)],
        1: [None, ("left", None), (None, "top")],
        2: [(None, "top"), (None, "top"), None],
    }[axis]
    for panel, sides in zip(panels(picture), expected, strict=True):
        if sides is None:
            continue
        rows, columns = np.nonzero(near(panel, COLORS[1]))
        if sides[0]:
            assert columns.mean() < 0.4 * panel.width
        if sides[1]:
            assert rows.mean() < 0.45 * panel.height


def test_millimetres_are_isotropic():
    """A cube of 24 mm stored with anisotropic voxels is drawn as a square in every panel."""
    labelmap = np.zeros((60, 30, 15), int)
    labelmap[18:42, 9:21, 4:10] = 1
    spacing = np.diag([1.0, 2.0, 4.0, 1.0])
    picture = contour_sheet(np.zeros(labelmap.shape), labelmap, spacing, COLORS, NAMES, zoom_mm=math.inf)
    for panel in panels(picture):
        rows, columns = np.nonzero(near(panel, COLORS[1]))
        # Half a pixel at either side, and cubic interpolation over 4 mm voxels, move an edge by little.
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3)
        assert np.ptp(rows) == pytest.approx(24 * 1000 / 120, abs=4)


def test_contour_follows_the_voxel_boundary_to_a_fraction_of_a_voxel():
    """Voxels 10..19 of 40 at 1 mm span 10..20 mm of the panel, counted from the right for x."""
    labelmap = np.zeros((40, 40, 40), int)
    labelmap[10:20, 10:20, 10:20] = 1
    picture = contour_sheet(np.zeros(labelmap.shape), labelmap, np.eye(4), COLORS, NAMES, zoom_mm=math.inf)
    scale = 1000 / 80
    coronal = panels(picture)[0]
    rows, columns = np.nonzero(near(coronal, COLORS[1]))
    left, top = 22, 22 + 26  # margin; margin and caption
    assert columns.min() - left == pytest.approx((40 - 20) * scale, abs=1)
    assert columns.max() + 1 - left == pytest.approx((40 - 10) * scale, abs=1)
    assert rows.min() - top == pytest.approx((40 - 20) * scale, abs=1)
    assert rows.max() + 1 - top == pytest.approx((40 - 10) * scale, abs=1)


def test_colours_show_what_is_there_and_nothing_else(scene):
    image, labelmap = scene
    both = contour_sheet(image, labelmap, AFFINE, COLORS, NAMES)
    assert all(near(both, color).sum() > 200 for color in COLORS.values())
    first = contour_sheet(image, np.where(labelmap == 1, 1, 0), AFFINE, COLORS, NAMES)
    assert near(first, COLORS[1]).any()
    assert not near(first, COLORS[2]).any()
    assert colored(contour_sheet(image, np.zeros_like(labelmap), AFFINE, COLORS, NAMES)) == 0


def test_a_single_voxel_is_not_smoothed_away(scene):
    image = scene[0]
    labelmap = np.zeros(image.shape, int)
    labelmap[7, 9, 5] = 1
    picture = contour_sheet(image, labelmap, AFFINE, COLORS, NAMES, zoom_mm=math.inf)
    assert all(near(panel, COLORS[1]).sum() > 20 for panel in panels(picture))


def test_neighbours_both_keep_their_side_of_a_common_border(scene):
    """Along the border of two labels both colours are drawn, so neither hides the other."""
    image = np.zeros((24, 24, 24))
    labelmap = np.zeros(image.shape, int)
    labelmap[6:18, 6:12, 6:18] = 1
    labelmap[6:18, 12:18, 6:18] = 2
    axial = panels(contour_sheet(image, labelmap, np.eye(4), COLORS, NAMES, center=(12, 12, 12)))[2]
    pixels = np.asarray(axial, int)[:, axial.width // 2 + 30]
    order = [label for row in pixels for label in COLORS if np.abs(row - COLORS[label]).max() <= 12]
    # From the top, anterior first: outer edge of 2, its inner edge, inner edge of 1, its outer edge.
    assert [a for a, b in zip(order, [None, *order], strict=False) if a != b] == [2, 1]
    assert min(order.count(1), order.count(2)) >= 2


def test_slices_pass_through_a_structure_even_where_the_centroid_does_not():
    labelmap = np.zeros((40, 20, 20), int)
    labelmap[4:8, 8:12, 8:12] = 1
    labelmap[30:36, 8:12, 8:12] = 2
    picture = contour_sheet(np.zeros(labelmap.shape), labelmap, np.eye(4), COLORS, NAMES)
    sagittal = picture.crop((picture.width * 2 // 3 + 10, 0, picture.width, picture.height // 2))
    assert near(sagittal, COLORS[2]).any()


def test_a_large_head_is_zoomed_to_the_finding():
    image = np.random.default_rng(0).normal(size=(100, 110, 60))
    labelmap = np.zeros(image.shape, int)
    labelmap[20:30, 50:60, 30:40] = 1
    extent = {}
    for zoom in (None, 30, math.inf):
        picture = contour_sheet(image, labelmap, np.eye(4), COLORS, NAMES, zoom_mm=zoom)
        coronal = picture.crop((0, 0, picture.width // 2, picture.height * 2 // 5))
        rows, _ = np.nonzero(near(coronal, COLORS[1]))
        extent[zoom] = np.ptp(rows)
    # The label spans 10 mm of a view of 40 (15 mm around), 31 (whole voxels) or 110 mm in y, 60 in z.
    assert extent[None] == pytest.approx(10 * 1000 / 80, abs=4)
    assert extent[30] == pytest.approx(10 * 1000 / 62, abs=8)
    assert extent[math.inf] == pytest.approx(10 * 1000 / 210, abs=4)


def test_intensity_scale_does_not_show_and_gaps_do_not_break_it(scene):
    image, labelmap = scene
    first = np.asarray(contour_sheet(image, labelmap, AFFINE, COLORS, NAMES), int)
    second = np.asarray(contour_sheet(image * 1e6 - 4e7, labelmap, AFFINE, COLORS, NAMES), int)
    assert np.abs(first - second).max() <= 1
    holes = image.copy()
    holes[0, 0, 0], holes[1, 1, 1], holes[2, 2, 2] = math.nan, math.inf, -math.inf
    third = np.asarray(contour_sheet(holes, labelmap, AFFINE, COLORS, NAMES), int)
    assert np.abs(first - third).mean() < 2
    contour_sheet(np.full(image.shape, math.nan), labelmap, AFFINE, COLORS, NAMES)


def test_crops_are_shown_large_enough_to_judge(scene):
    picture = contour_sheet(np.zeros((36, 52, 38)), np.zeros((36, 52, 38), int), np.eye(4), COLORS, NAMES)
    assert picture.mode == "RGB"
    assert picture.width > 2 * 400
    assert max(picture.size) < 1300
    slab = contour_sheet(np.zeros((300, 300, 2)), np.zeros((300, 300, 2), int), np.eye(4), COLORS, NAMES)
    assert max(slab.size) < 1300


def test_any_title_and_any_number_of_labels_can_be_drawn():
    labelmap = np.arange(1, 65).reshape(4, 4, 4).repeat(6, 0).repeat(6, 1).repeat(6, 2)
    colors = {label: (label * 3, 255 - label, 80) for label in range(1, 65)}
    names = {label: f"a rather long name of structure {label}, as they are" for label in range(1, 60)}
    picture = contour_sheet(labelmap * 1.0, labelmap, np.eye(4), colors, names, "Müller 海馬 " * 30)
    assert max(picture.size) < 1300


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.zeros((1, 4, 4, 4))},
        {"labelmap": np.zeros((4, 4, 5), int)},
        {"labelmap": np.zeros((4, 4, 4))},
        {"labelmap": np.full((4, 4, 4), 3)},
        {"affine": np.eye(3)},
        {"affine": np.diag([1.0, 1, 0, 1])},
        {"center": (0, 0, 4)},
        {"zoom_mm": 0.0},
        {"zoom_mm": math.nan},
        {"entropy": np.zeros((4, 4, 5))},
    ],
)
def test_nonsense_is_refused(change):
    given = {"image": np.zeros((4, 4, 4)), "labelmap": np.zeros((4, 4, 4), int), "affine": np.eye(4)}
    with pytest.raises(UserError):
        contour_sheet(**{**given, "colors": COLORS, "names": NAMES, **change})


def heat_sheet(scene, entropy):
    return np.asarray(contour_sheet(*scene, AFFINE, COLORS, NAMES, "case", entropy=entropy))


def test_heat_is_the_same_for_every_stored_orientation(scene):
    entropy = np.random.default_rng(1).uniform(0, math.log(2), scene[0].shape)
    expected = heat_sheet(scene, entropy)
    for order, signs in (((2, 0, 1), (-1, 1, -1)), ((1, 0, 2), (1, -1, 1))):
        image, affine = restore(scene[0], AFFINE, order, signs)
        labelmap, heat = (restore(volume, AFFINE, order, signs)[0] for volume in (scene[1], entropy))
        picture = contour_sheet(image, labelmap, affine, COLORS, NAMES, "case", entropy=heat)
        assert np.array_equal(np.asarray(picture), expected)


def test_heat_lies_in_the_slices_of_the_contours(scene):
    """Where all is sure the slices are grey, and with heat inside label 1 they are coloured there alone."""
    contours = contour_sheet(*scene, AFFINE, COLORS, NAMES, "case")
    sure, unsure = (heat_sheet(scene, np.where(scene[1] == 1, h, 0.0)) for h in (0, math.log(2)))
    assert sure.shape == unsure.shape == np.asarray(contours).shape
    changed = (sure != unsure).any(-1)
    rows, columns = np.nonzero(near(contours, COLORS[1]))
    # The contour of label 1 in the coronal panel, the swatch in the legend being further to the right and down.
    panel = (rows < changed.shape[0] / 2) & (columns < changed.shape[1] / 2)
    assert panel.sum() > 100
    box = np.zeros_like(changed)
    box[rows[panel].min() : rows[panel].max() + 1, columns[panel].min() : columns[panel].max() + 1] = True
    inside = changed & box
    assert inside.sum() > 0.9 * box.sum()
    assert near(unsure[inside], (255, 240, 110), 60).mean() > 0.5


def test_full_heat_is_two_classes_equally_likely(scene):
    full, more, less = (heat_sheet(scene, np.full(scene[0].shape, h)) for h in (math.log(2), math.log(3), 0.3))
    assert np.array_equal(full, more)
    assert not np.array_equal(full, less)


def test_montage_sets_row_by_row():
    tiles = [Image.new("RGB", (10, 8), (shade, 0, 0)) for shade in (50, 100, 150)]
    sheet = montage(tiles, 2)
    assert sheet.size == (20, 16)
    assert [sheet.getpixel(point)[0] for point in ((5, 4), (15, 4), (5, 12))] == [50, 100, 150]
    assert montage(tiles, 9).size == (30, 8)
    with pytest.raises(UserError):
        montage([], 2)


def test_pictures_and_reports_need_neither_monai_nor_torch():
    code = (
        "import sys; from voxscore.evaluation import contour_sheet, segmentation_report;"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'monai', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
