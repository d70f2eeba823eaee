"""A copy is found however it was laid down, and strangers with one anatomy are not alike."""

import nibabel as nib
import numpy as np
import pytest
import torch

from voxscore.errors import UserError
from voxscore.evaluation import UNLIKE, Registration, on_grid, search_grid

SHAPE = (24, 28, 24)


def person(seed, shape=SHAPE):
    """The anatomy that all share, and a texture of one's own."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    anatomy = 4 * np.exp(-3 * sum(a**2 for a in axes))
    spectrum = np.fft.rfftn(rng.normal(size=shape), axes=(0, 1, 2))
    frequency = np.meshgrid(*map(np.fft.fftfreq, shape[:2]), np.fft.rfftfreq(shape[2]), indexing="ij")
    texture = np.fft.irfftn(spectrum * np.exp(-20 * sum(f**2 for f in frequency)), s=shape, axes=(0, 1, 2))
    return (100 * (anatomy + texture / texture.std())).astype(np.float32)


@pytest.fixture(scope="module")
def training():
    return [person(k) for k in range(20)]


@pytest.fixture(scope="module")
def grid(training):
    return search_grid([v.shape for v in training], [np.eye(4)] * len(training))


@pytest.fixture(scope="module")
def search(training, grid):
    """search(arrays) -> likeness to the training volumes."""
    references = torch.stack([on_grid(v, np.eye(4), grid) for v in training])
    registration = Registration(references, grid)
    return lambda arrays: registration.likeness(torch.stack([on_grid(a, np.eye(4), grid) for a in arrays]), references)


def turned(array, degrees):
    theta = torch.eye(3, 4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    theta[:2, :2] = torch.tensor([[c, -s], [s, c]])
    place = torch.nn.functional.affine_grid(theta[None], [1, 1, *array.shape], align_corners=True)
    volume = torch.from_numpy(array)[None, None]
    return torch.nn.functional.grid_sample(volume, place, padding_mode="border", align_corners=True)[0, 0].numpy()


COPIES = {
    "itself": (lambda a: a, 0.999),
    "mirrored": (lambda a: a[::-1].copy(), 0.98),
    "mirrored thrice": (lambda a: a[::-1, ::-1, ::-1].copy(), 0.98),
    "brighter": (lambda a: 3 * a + 500, 0.999),
    "other contrast": (lambda a: np.exp(a / 200), 0.999),
    "shifted": (lambda a: np.roll(a, (2, -3, 1), (0, 1, 2)), 0.9),
    "cropped": (lambda a: a[3:, :-4, 2:], 0.8),
    "turned": (lambda a: turned(a, 6), 0.7),
    "noisy": (lambda a: a + np.random.default_rng(0).normal(0, 25, a.shape), 0.8),
}


def test_strangers_are_less_alike_than_any_copy(search):
    strangers = search([person(k) for k in range(100, 106)])
    assert strangers.max() < 0.65
    assert np.corrcoef(person(0).ravel(), person(100).ravel())[0, 1] > 0.2


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(search, training, name):
    change, least = COPIES[name]
    likeness = search([change(training[k]).astype(np.float32) for k in (3, 11)])
    assert likeness.argmax(1).tolist() == [3, 11]
    assert likeness.amax(1).min() > least
    assert likeness.max() <= 1


def test_excluded_pairs_are_not_compared(training, grid):
    references = torch.stack([on_grid(v, np.eye(4), grid) for v in training])
    registration = Registration(references, grid)
    likeness = registration.likeness(references[:2], references, torch.eye(20, dtype=torch.bool)[:2])
    assert likeness[0, 0] == likeness[1, 1] == UNLIKE
    assert likeness.max() < 0.65


def test_a_query_is_searched_alone(search, training):
    arrays = [person(200), training[5], person(201)]
    together = search(arrays)
    torch.testing.assert_close(torch.cat([search([a]) for a in arrays]), together, rtol=0, atol=1e-5)


def test_grid_in_closed_form():
    """80 x 60 x 40 voxels of 1 x 1 x 2 mm, stored as P, S, L: 80 mm along each of R and A, 60 mm along S."""
    affine = np.array([[0, 0, -2.0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    found = search_grid([(80, 60, 40)], [affine])
    assert found.voxel == pytest.approx(80 / 56)
    assert found.template == (40, 40, 32)
    assert found.shape == (48, 48, 40)
    assert search_grid([(40, 60, 40)], [np.diag([1.25, 1.25, 1.25, 1])]).voxel == pytest.approx(75 / 56)
    assert search_grid([(40, 40, 40)], [np.diag([1.25, 1.25, 1.25, 1])]).voxel == 1.25


def test_ranks_do_not_depend_on_how_a_volume_is_stored(grid):
    array = person(7)
    stored = nib.orientations.apply_orientation(array, nib.orientations.axcodes2ornt("PIL"))
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt("PIL"), array.shape)
    ranks = on_grid(array, np.eye(4), grid)
    torch.testing.assert_close(on_grid(stored, affine, grid), ranks)
    assert ranks.min() == 0
    assert ranks.max() == 1
    assert float(ranks.mean()) == pytest.approx(0.5)


def test_a_finer_volume_is_smoothed_to_the_grid(grid):
    """Each voxel split into 2 x 2 x 2 is the same volume."""
    array = person(8)
    fine = array.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = np.diag([0.5, 0.5, 0.5, 1])
    a, b = on_grid(fine, affine, grid), on_grid(array, np.eye(4), grid)
    assert np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.99


def test_volumes_that_are_too_thin_or_absent_are_refused():
    with pytest.raises(UserError, match="give thicker volumes"):
        search_grid([(40, 40, 3)], [np.eye(4)])
    with pytest.raises(UserError, match="is empty"):
        search_grid([], [])
