"""LoadKspace: the file's numbers pass; maps, phase and noise are the scan's, from whichever source they come."""

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from voxscore.errors import UserError
from voxscore.measurement import (
    CartesianMRI,
    absorb_phase,
    low_resolution_maps,
    poisson_disc_mask,
    root_sum_of_squares,
    simulate_maps,
    zero_filled,
)
from voxscore.transforms import LoadKspace, LoadKspaceD, LoadKspaced, LoadKspaceDict
from voxscore.volumes import make_raw, read_raw, write_raw

SHAPE, NOISE = (24, 36, 32), 0.02


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scan(tmp_path, oblique, coils=4, with_maps=False, center=12, mask=None):
    """A smooth ellipsoid with a phase, seen through known coils, in noise: the file, the truth, the maps."""
    axes = [torch.linspace(-1, 1, n) for n in SHAPE]
    p = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    image = torch.sigmoid((0.7 - p.square().sum(0).sqrt()) * 12) * (1 + 0.3 * torch.cos(5 * p[1]))
    if mask is None:
        mask = poisson_disc_mask(SHAPE, (1, 2), 3, generator(1), center)
    maps = simulate_maps(coils, SHAPE)
    phase = torch.polar(torch.ones(SHAPE), 1.5 * p[2] + 0.5 * p[0] * p[1])
    kspace = CartesianMRI(mask, maps * phase)(image[None, None])[0]
    kspace = kspace + NOISE * mask * torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=generator(2)))
    raw = make_raw(
        *(kspace.numpy(), tmp_path / "scan.h5", "voxscore", mask.numpy()),
        maps=maps.numpy() if with_maps else None,
        affine=oblique,
    )
    write_raw(raw, tmp_path / "scan.h5", overwrite=True)
    return tmp_path / "scan.h5", image, maps


def misfit(loaded, image):
    """Root mean square of what the true image leaves of the measurement, in standard deviations of the noise."""
    left = CartesianMRI(loaded.mask, loaded.maps)(image[None, None])[0] - loaded.kspace
    return float(torch.view_as_real(left[loaded.mask.expand_as(left)]).square().mean().sqrt()) / NOISE


def test_the_numbers_of_the_file_pass(tmp_path, oblique):
    path, _, _ = scan(tmp_path, oblique)
    raw, loaded = read_raw(path), LoadKspace()(path)
    np.testing.assert_array_equal(loaded.kspace.numpy(), raw.kspace)
    np.testing.assert_array_equal(loaded.mask.numpy(), raw.mask)
    np.testing.assert_array_equal(loaded.image.affine.numpy(), oblique)
    assert loaded.image.meta["filename_or_obj"] == str(path)
    assert isinstance(loaded.image, MetaTensor)
    torch.testing.assert_close(loaded.image.as_tensor(), zero_filled(loaded.kspace[None], loaded.maps)[0])
    assert [part.dtype for part in loaded] == [
        *(torch.float32, torch.complex64, torch.bool, torch.complex64, torch.float32)
    ]
    # One number more: what was read before gives the same.
    assert all(torch.equal(a, b) for a, b in zip(loaded, LoadKspace()(raw), strict=True))


@pytest.mark.parametrize("with_maps", [True, False], ids=["maps of the file", "estimated maps"])
def test_the_true_real_image_explains_the_measurement(tmp_path, oblique, with_maps):
    path, image, maps = scan(tmp_path, oblique, with_maps=with_maps)
    loaded = LoadKspace()(path)
    assert 0.9 < misfit(loaded, image) < (1.03 if with_maps else 1.2)
    if with_maps:
        torch.testing.assert_close(loaded.maps.abs(), maps.abs())


def test_estimated_maps_see_air(tmp_path, oblique):
    length = root_sum_of_squares(LoadKspace()(scan(tmp_path, oblique)[0]).maps, dim=0)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_maps_of_a_narrow_middle_are_of_low_resolution(tmp_path, oblique):
    lines = torch.arange(SHAPE[1]).reshape(1, -1, 1) - SHAPE[1] // 2
    path, _, _ = scan(tmp_path, oblique, mask=(lines.abs() < 2) | (lines % 4 == 0))
    loaded = LoadKspace()(path)
    expected = low_resolution_maps(loaded.kspace, loaded.mask)
    torch.testing.assert_close(loaded.maps, absorb_phase(expected, loaded.kspace, loaded.mask))


def test_one_coil_sees_everything_alike(tmp_path, oblique):
    path, image, _ = scan(tmp_path, oblique, coils=1)
    loaded = LoadKspace()(path)
    torch.testing.assert_close(loaded.maps.abs(), torch.ones_like(loaded.maps.abs()))
    assert 0.9 < misfit(loaded, image) < 1.1


def test_the_users_mask_maps_and_noise_win(tmp_path, oblique):
    path, _, maps = scan(tmp_path, oblique, with_maps=True)
    fewer = torch.zeros(1, *SHAPE[1:], dtype=torch.bool)
    fewer[:, 10:26, 8:24] = True
    np.save(tmp_path / "mask.npy", fewer.numpy())
    np.save(tmp_path / "maps.npy", 2 * maps.numpy())
    loaded = LoadKspace(tmp_path / "mask.npy", tmp_path / "maps.npy", 0.5)(path)
    assert not (loaded.mask & ~fewer).any()
    torch.testing.assert_close(loaded.maps.abs(), 2 * maps.abs())
    assert loaded.noise_std == 0.5
    with pytest.raises(ValueError, match="RawData has its mask"):
        LoadKspace(mask=tmp_path / "mask.npy")(read_raw(path))


def test_noise_is_estimated(tmp_path, oblique):
    path, _, _ = scan(tmp_path, oblique)
    # At the edge of k-space of this smooth object is a little signal.
    assert float(LoadKspace()(path).noise_std) == pytest.approx(NOISE, rel=0.05)


def test_dictionary_version_leaves_its_input_alone(tmp_path, oblique):
    assert LoadKspaced is LoadKspaceD is LoadKspaceDict
    path, _, _ = scan(tmp_path, oblique)
    data = {"image": path, "other": 1}
    loaded, expected = LoadKspaced("image", noise_std=0.1)(data), LoadKspace(noise_std=0.1)(path)
    assert data == {"image": path, "other": 1}
    assert list(loaded) == ["image", "other", "image_kspace", "image_mask", "image_maps", "image_noise_std"]
    assert torch.equal(loaded.pop("image"), expected.image)
    assert all(torch.equal(loaded[f"image_{name}"], getattr(expected, name)) for name in expected._fields[1:])
    assert LoadKspaced("absent", allow_missing_keys=True)(data) == data


def test_what_cannot_be_known_is_refused_with_the_name_of_the_file(tmp_path, oblique):
    mask = torch.ones(1, *SHAPE[1:], dtype=torch.bool)
    mask[:, 18, 16] = False
    path, _, _ = scan(tmp_path, oblique, mask=mask)
    with pytest.raises(UserError, match=r"scan.h5: its mask leaves out the middle of k-space"):
        LoadKspace()(path)
    padded = read_raw(scan(tmp_path, oblique)[0])
    middle = np.zeros(SHAPE, bool)
    middle[6:18, 9:27, 8:24] = True
    padded.kspace[:, ~middle] = 0
    everywhere = make_raw(padded.kspace, path, "voxscore", np.ones((1, 1, 1)))
    with pytest.raises(UserError, match=r"scan.h5: its k-space is 0 at its edge.*give the noise"):
        LoadKspace()(everywhere)
    assert LoadKspace(noise_std=0.3)(everywhere).noise_std == pytest.approx(0.3)
    for noise in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="noise: has a standard deviation of"):
            LoadKspace(noise_std=noise)


def test_builds_from_a_configuration():
    config = {"load": {"_target_": "voxscore.transforms.LoadKspaced", "keys": ["image"], "noise_std": 0.25}}
    assert ConfigParser(config).get_parsed_content("load").load.noise_std == 0.25
