"""Faces: the region in millimetres whatever the grid, the brain untouched, the background right, refusals."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from deface import LOW, on_spacing, phantom

from voxscore.deidentify.brain import CoarseHead
from voxscore.deidentify.faces import deface, face_region
from voxscore.errors import UserError


@pytest.fixture(scope="module")
def mr():
    return on_spacing((3.0, 3.0, 3.0))


@pytest.fixture(scope="module")
def ct():
    return on_spacing((3.0, 3.0, 3.0), ct=True)


def ball(shape, affine, centre, radius):
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    return points, ((points - centre) ** 2).sum(-1) <= radius**2


def test_region_of_a_ball_in_closed_form(affine):
    """Around a ball of radius r the supporting planes are r + m from its centre, whatever the grid."""
    shape = (61, 39, 13)  # about 43 mm in every direction
    centre = (affine @ [30, 19, 6, 1])[:3]
    radius, margin = 8.0, 4.0
    points, brain = ball(shape, affine, centre, radius)
    region = face_region(brain, affine, margin)
    assert not (region & brain).any()
    down, aside = np.meshgrid(np.deg2rad(np.arange(0, 61, 7.5)), np.deg2rad(np.arange(-45, 46, 7.5)))
    fan = np.stack([np.cos(down) * np.sin(aside), np.cos(down) * np.cos(aside), -np.sin(down)], -1).reshape(-1, 3)
    furthest = ((points - centre) @ fan.T).max(-1)
    assert region[furthest > radius + margin].all()
    # The outermost voxel centre of a ball may lie inside it by half the diagonal of a voxel.
    slack = np.abs(affine[:3, :3]).sum() / 2
    assert not region[furthest < radius + margin - slack].any()


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_orientation_of_the_file_does_not_matter(mr, flips, order):
    def turned(array):
        return np.ascontiguousarray(np.transpose(array[tuple(slice(None, None, f) for f in flips)], order))

    affine = np.array(mr.affine)
    for a, f in enumerate(flips):
        if f < 0:
            affine[:3, 3] += affine[:3, a] * (mr.image.shape[a] - 1)
            affine[:3, a] *= -1
    affine[:3, :3] = affine[:3, list(order)]
    expected = turned(face_region(mr.brain, mr.affine))
    np.testing.assert_array_equal(face_region(turned(mr.brain), affine), expected)


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 4.0), (4.0, 3.0, 2.0)])
def test_phantom_loses_its_face_and_no_brain(spacing):
    head = on_spacing(spacing)
    done = deface(head.image, head.affine, head.brain)
    assert done.removed[head.face].mean() >= 0.99
    assert not (done.removed & head.brain).any()
    np.testing.assert_array_equal(done.array[~done.removed], head.image[~done.removed])
    assert (done.array[done.removed] == done.record.fill).all()


def test_oblique_phantom():
    tilt = np.deg2rad(12)
    affine = np.eye(4)
    affine[:3, :3] = 3 * np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine[:3, 3] = np.add(LOW, (0, 20, -30))
    head = phantom(affine, (62, 90, 86))
    done = deface(head.image, affine, head.brain)
    assert done.removed[head.face].mean() >= 0.99
    assert not (done.removed & head.brain).any()


def test_brain_is_estimated(mr, ct):
    for head in (mr, ct):
        coarse = CoarseHead.of(head.image, head.affine)
        assert coarse.ct == (head is ct)
        estimate = coarse.on_image(coarse.brain())
        assert 2 * (estimate & head.brain).sum() > 0.9 * (estimate.sum() + head.brain.sum())
        done = deface(head.image, head.affine)
        assert done.record.brain == "estimated"
        assert done.removed[head.face].mean() >= 0.99
        assert not (done.removed & head.brain).any()


def test_background_is_air(mr, ct):
    assert abs(deface(ct.image, ct.affine, ct.brain).record.fill + 1000) <= 2
    assert deface(mr.image + 20, mr.affine, mr.brain).record.fill == pytest.approx(20, abs=2)
    whole = deface(ct.image.astype(np.int16), ct.affine, ct.brain, fill=-1024)
    assert whole.array.dtype == np.int16
    assert (whole.array[whole.removed] == -1024).all()


def test_record_counts(mr):
    done = deface(mr.image, mr.affine, mr.brain)
    record = done.record.as_dict()
    assert record["brain_ml"] == pytest.approx(mr.brain.sum() * 0.027, abs=0.1)
    assert record["changed"] == pytest.approx(done.removed.mean(), abs=1e-4)
    assert record["brain_removed"] == 0
    assert record["face_surface_removed"] > 0.95


def test_refusals(mr):
    empty, grid = np.zeros_like(mr.brain), mr.brain[:, :, 1:]
    one = empty.copy()
    one[20, 20, 20] = True
    for mask in (empty, ~empty, one):
        with pytest.raises(UserError, match="which no brain has"):
            deface(mr.image, mr.affine, mask)
    with pytest.raises(UserError, match="not on the grid"):
        deface(mr.image, mr.affine, grid)
    with pytest.raises(UserError, match="not finite"):
        deface(mr.image, mr.affine, np.where(mr.brain, np.nan, 0))
    with pytest.raises(UserError, match="cut into the brain"):
        deface(mr.image, mr.affine, mr.brain, margin=-1)
    reaching = mr.brain | mr.face
    with pytest.raises(UserError, match="would keep"):
        deface(mr.image, mr.affine, reaching)


def test_no_head_no_brain():
    rng = np.random.default_rng(0)
    crop = rng.normal(100, 10, (35, 50, 36)).astype(np.float32)
    with pytest.raises(UserError, match="cannot be found"):
        deface(crop, np.eye(4))


def test_a_body_is_no_head():
    """A body of fat with a ball of muscle of a brain's size in it."""
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    points, ball_inside = ball((80, 60, 50), affine, (200, 150, 125), 65)
    body = ((points[..., 0] - 200) / 180) ** 2 + ((points[..., 1] - 150) / 120) ** 2 <= 1
    image = np.where(ball_inside, 40.0, np.where(body, -100.0, -1000.0)).astype(np.float32)
    with pytest.raises(UserError, match="does not look like a head"):
        deface(image, affine)
