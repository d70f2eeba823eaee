"""Every case is drawn whole, at its fullest slices, on one scale, with its labels where they are."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations, product

import numpy as np
import pytest
from skimage.measure import label as components
from skimage.measure import regionprops

from voxscore.errors import UserError
from voxscore.evaluation.contact_sheets import contact_sheet

COLORS = {1: (255, 176, 0), 2: (0, 190, 255)}
NAMES = {1: "anterior", 2: "posterior"}
AFFINE = np.array([[0.9, 0.05, 0, -20.3], [-0.04, 1.1, 0.1, 7.7], [0, -0.1, 2.5, 3.1], [0, 0, 0, 1]])
VIEWS = {"sagittal": (1, 2, 0), "coronal": (0, 2, 1), "axial": (0, 1, 2)}  # across, down, cut
EMPTY = np.zeros((30, 30, 30), int)


def near(picture, color, tolerance=12):
    """Where a picture shows a colour, (rows, columns)."""
    return (np.abs(np.asarray(picture, int) - color) <= tolerance).all(axis=-1)


def slices(picture):
    """The rectangles of bright volumes: ([sagittal, coronal, axial] plain, the same labelled), case after case.

    Each is an array (rows, columns, 3); text and frames are too small or too dark to be taken for one.
    """
    pixels = np.asarray(picture)
    boxes = [region.bbox for region in regionprops(components(pixels.max(axis=-1) > 110)) if region.area > 1500]
    upper, lower = [], []
    for top, left, bottom, right in sorted(boxes, key=lambda box: box[1]):
        twin = [b for b in boxes if b[1] == left and 0 < top - b[2] < 10]
        (lower if twin else upper).append(pixels[top:bottom, left:right])
    return upper, lower


def case(labelmap=EMPTY, affine=None, name="case"):
    """A bright volume with a dark corner, large enough to be the black of the window."""
    image = np.ones(labelmap.shape)
    image[:6, :6, :6] = 0
    return name, image, labelmap, np.eye(4) if affine is None else affine


@pytest.mark.parametrize("label", [1, 2])
def test_a_label_is_drawn_where_it_is_and_nowhere_else(label):
    labelmap = EMPTY.copy()
    span = ((4, 11), (13, 28), (9, 15))  # first and last voxel but one of R, A and S
    labelmap[tuple(slice(*each) for each in span)] = label
    plain, labelled = slices(contact_sheet([case(labelmap)], COLORS, NAMES))
    assert len(plain) == len(labelled) == 3
    for (across, down, _), bare, drawn in zip(VIEWS.values(), plain, labelled, strict=True):
        assert np.ptp(bare.astype(int), axis=-1).max() == 0
        assert not near(drawn, COLORS[3 - label]).any()
        px = drawn.shape[1] / 30
        for axis, count in ((across, 1), (down, 0)):
            places = np.nonzero(near(drawn, COLORS[label]))[count]
            # Displayed axes run against R, A and S.
            assert places.min() == pytest.approx((30 - span[axis][1]) * px, abs=2)
            assert places.max() + 1 == pytest.approx((30 - span[axis][0]) * px, abs=2)
        # Colours are mixed with the grey at the line's edges, never outside the label.
        rows, columns = np.nonzero(np.ptp(drawn.astype(int), axis=-1) > 24)
        assert rows.min() >= (30 - span[down][1]) * px - 2
        assert columns.max() <= (30 - span[across][0]) * px + 2


@pytest.mark.parametrize(("view", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
@pytest.mark.parametrize("peak", [8, 21])
def test_the_slice_is_the_one_with_most_labelled_voxels(view, axis, peak):
    """The labels' centroid lies elsewhere; only the fullest slice is grey."""
    name, image, labelmap, affine = case()
    labelmap = labelmap.copy()
    labelmap[10:20, 10:20, 10:20] = 1
    fullest = [slice(10, 20)] * 3
    fullest[axis] = slice(peak, peak + 1)
    for other in range(3):
        if other != axis:
            fullest[other] = slice(8, 22)
    labelmap[tuple(fullest)] = 2
    image[np.moveaxis(np.broadcast_to((np.arange(30) == peak)[:, None, None], (30,) * 3), 0, axis)] = 0.6
    plain, _ = slices(contact_sheet([(name, image, labelmap, affine)], COLORS, NAMES))
    levels = dict(zip(VIEWS, (np.median(panel) for panel in plain), strict=True))
    assert levels.pop(view) == pytest.approx(0.6 * 255, abs=2)
    assert set(levels.values()) == {255}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_without_labels_the_slices_are_in_the_middle(axis):
    name, image, labelmap, affine = case()
    image[np.moveaxis(np.broadcast_to((np.arange(30) == 15)[:, None, None], (30,) * 3), 0, axis)] = 0.6
    plain, labelled = slices(contact_sheet([(name, image, labelmap, affine)], COLORS, NAMES))
    assert np.median(plain[axis]) == pytest.approx(0.6 * 255, abs=2)
    assert all(np.array_equal(a, b) for a, b in zip(plain, labelled, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_right_anterior_and_superior_are_left_and_on_top(axis):
    labelmap = EMPTY.copy()
    place = [slice(13, 17)] * 3
    place[axis] = slice(22, 26)
    labelmap[tuple(place)] = 1
    _, labelled = slices(contact_sheet([case(labelmap)], COLORS, NAMES))
    for (across, down, _), panel in zip(VIEWS.values(), labelled, strict=True):
        rows, columns = (places.mean() / panel.shape[0] for places in np.nonzero(near(panel, COLORS[1])))
        assert columns == pytest.approx(0.2 if across == axis else 0.5, abs=0.05)
        assert rows == pytest.approx(0.2 if down == axis else 0.5, abs=0.05)


def test_stored_orientation_does_not_show():
    """Not even where two slices are equally full."""
    image = np.random.default_rng(0).normal(size=(20, 26, 12)).cumsum(0).cumsum(1)
    labelmap = np.zeros(image.shape, np.int16)
    labelmap[4:10, 5:14, 3:8] = 1
    labelmap[4:10, 14:19, 3:7] = 2
    stored = []
    for order, signs in product(permutations(range(3)), product([1, -1], repeat=3)):
        to_old = np.zeros((4, 4))
        to_old[3, 3] = 1
        for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
            to_old[old, new], to_old[old, 3] = sign, image.shape[old] - 1 if sign < 0 else 0
        flip = tuple(slice(None, None, sign) for sign in signs)
        stored.append(("case", image.transpose(order)[flip], labelmap.transpose(order)[flip], AFFINE @ to_old))
    expected = contact_sheet([("case", image, labelmap, AFFINE)] * len(stored), COLORS, NAMES)
    assert np.array_equal(np.asarray(contact_sheet(stored, COLORS, NAMES)), np.asarray(expected))


def test_all_cases_share_one_scale_in_millimetres():
    """10 x 20 x 40 voxels of 3 x 1.5 x 0.75 mm, and 20 of 2 mm in each direction."""
    cubes = [
        case(np.zeros((10, 20, 40), int), np.diag([3, 1.5, 0.75, 1.0])),
        case(np.zeros((20, 20, 20), int), np.diag([2, 2, 2, 1.0])),
    ]
    plain, labelled = slices(contact_sheet(cubes, COLORS, NAMES))
    for panels in (plain, labelled):
        sizes = np.array([panel.shape[:2] for panel in panels])
        assert np.ptp(sizes[:3]) == np.ptp(sizes[3:]) == 0
        assert sizes[3, 0] / sizes[0, 0] == pytest.approx(40 / 30, abs=0.02)


def test_the_legend_names_labels_and_hollows_those_that_are_nowhere():
    labelmap = EMPTY.copy()
    labelmap[10:20, 10:20, 10:20] = 1
    drawn = contact_sheet([case(labelmap)], COLORS, NAMES)
    bottom = drawn.crop((0, drawn.height - 100, drawn.width, drawn.height))
    assert near(bottom, COLORS[1], 0).sum() > 200
    assert not near(bottom, COLORS[2], 0).any()
    renamed = contact_sheet([case(labelmap)], COLORS, {1: "anterior", 2: "other"})
    assert drawn.size == renamed.size
    assert not np.array_equal(np.asarray(drawn), np.asarray(renamed))


def test_a_long_legend_is_wrapped():
    colors = {label: (255, 4 * label, 0) for label in range(1, 41)}
    labelmap = EMPTY.copy()
    labelmap.flat[:40] = range(1, 41)
    drawn = contact_sheet([case(labelmap)], colors, {label: f"structure {label}" for label in colors})
    found = {color: count for count, color in drawn.getcolors(drawn.width * drawn.height)}
    assert all(found[color] > 200 for color in colors.values())


@pytest.mark.parametrize("count", [1, 2, 3, 13, 64])
def test_the_size_is_bounded(count):
    items = [case(np.zeros((7, 10, 7), np.uint8), name=f"case {i}") for i in range(count)]
    drawn = contact_sheet(items, COLORS, NAMES, "Ünser Titel " * 50)
    assert 500 < drawn.width <= 2400
    assert drawn.height <= 2800
    if count == 1:
        assert drawn.width < 1000
    else:
        assert drawn.width > 0.8 * drawn.height


def test_the_size_is_bounded_for_tall_volumes_too():
    items = [case(np.zeros((1, 1, 225), np.uint8), name=f"case {i}") for i in range(64)]
    drawn = contact_sheet(items, COLORS, NAMES)
    assert drawn.width <= 2400
    assert drawn.height <= 2800


def test_every_case_is_there_in_reading_order():
    """Case i has i columns of its label."""
    items = []
    for i in range(5):
        labelmap = EMPTY.copy()
        labelmap[5 : 7 + 2 * i, 5:20, 5:20] = 1
        items.append(case(labelmap, name=f"case {i}"))
    drawn = contact_sheet(items, COLORS, NAMES)
    boxes = [r.bbox for r in regionprops(components(np.asarray(drawn).max(axis=-1) > 110)) if r.area > 1500]
    tops = sorted({box[0] for box in boxes})[1::2]  # rows with labels
    widths = []
    for top in tops:
        for box in sorted((b for b in boxes if b[0] == top), key=lambda b: b[1])[2::3]:  # axial
            columns = np.nonzero(near(drawn.crop((box[1], box[0], box[3], box[2])), COLORS[1]))[1]
            widths.append(np.ptp(columns) / (box[3] - box[1]) * 30)
    np.testing.assert_allclose(widths, 2 + 2 * np.arange(5), atol=0.6)


@pytest.mark.parametrize(
    ("items", "fault"),
    [
        ([], "has 0 cases"),
        ([case()] * 257, "has 257 cases"),
        ([case(), ("odd", np.ones((5, 5, 5)), np.zeros((5, 5, 4), int), np.eye(4))], "^odd: label map"),
        ([("odd", np.ones((5, 5)), np.zeros((5, 5), int), np.eye(4))], "^odd: image"),
        ([("odd", np.ones((5, 5, 5)), np.zeros((5, 5, 5), int), np.zeros((4, 4)))], "^odd: affine"),
        ([("odd", np.ones((5, 5, 5)), np.full((5, 5, 5), 3), np.eye(4))], r"^odd: colors: lack the labels \[3\]"),
    ],
)
def test_bad_input_is_one_clear_error(items, fault):
    with pytest.raises(UserError, match=fault):
        contact_sheet(items, COLORS, NAMES)


def test_the_public_name_is_the_function_and_needs_neither_torch_nor_monai():
    code = (
        "import sys, voxscore.evaluation.contact_sheets; from voxscore.evaluation import contact_sheet;"
        "sys.exit(not callable(contact_sheet) or bool({'torch', 'monai', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
