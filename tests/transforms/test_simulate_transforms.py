"""Simulated measurements are what the operators say, repeatable, traced, and where the volume lies."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, CropForegroundd, InvertibleTransform, Orientationd

import voxscore.transforms as public
from voxscore.errors import UserError
from voxscore.measurement import (
    CartesianMRI,
    Downsample,
    FanBeam,
    ParallelBeam,
    random_mask,
    rician_noise,
    simulate_maps,
)
from voxscore.transforms import (
    LoadKspaced,
    SimulateKspace,
    SimulateKspaced,
    SimulateLowResolution,
    SimulateLowResolutiond,
    SimulateNoise,
    SimulateNoised,
    SimulateSinogram,
    SimulateSinogramd,
    simulate_phase,
)
from voxscore.volumes import make_raw

SHAPE = (12, 20, 18)
ANGLES = [math.pi * k / 48 for k in range(48)]
RAYS = partial(ParallelBeam, angles=ANGLES)


@pytest.fixture
def image(oblique):
    axes = [torch.linspace(-1, 1, n) for n in SHAPE]
    p = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    x = torch.sigmoid((0.8 - p.square().sum(0).sqrt()) * 10) * (1 + 0.3 * torch.cos(4 * p[1]))
    affine = torch.from_numpy(oblique.copy())
    affine[:3, :3] *= torch.tensor([1.1, 0.7, 1.0]) / torch.tensor([0.7, 0.7, 1.0])  # square voxels in a slice
    return MetaTensor(x[None], affine=affine, meta={"filename_or_obj": "a.nii.gz"})


PAIRS = {
    "kspace": (SimulateKspace, SimulateKspaced, {"coils": 3}),
    "sinogram": (SimulateSinogram, SimulateSinogramd, {"geometry": RAYS, "photons": 1e4}),
    "low resolution": (SimulateLowResolution, SimulateLowResolutiond, {"factor": (1, 1, 3)}),
    "noise": (SimulateNoise, SimulateNoised, {"noise": 0.1}),
}
RANDOM = [name for name in PAIRS if name != "low resolution"]


def numbers(measured):
    """All that was measured, as one tensor."""
    return torch.view_as_real(measured.kspace) if isinstance(measured, tuple) else measured.as_tensor()


def volume(measured):
    return measured.image if isinstance(measured, tuple) else measured


@pytest.mark.parametrize("name", PAIRS)
def test_arrays_tensors_and_metatensors_measure_alike_and_stay_as_they_are(name, image):
    make, _, arguments = PAIRS[name]
    plain = MetaTensor(image.as_tensor())
    before = plain.clone()
    results = []
    for given in (plain, plain.as_tensor(), plain.numpy()):
        transform = make(**arguments)
        if name in RANDOM:
            transform.set_random_state(3)
        measured = transform(given)
        assert isinstance(volume(measured), MetaTensor)
        results.append(numbers(measured))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(plain, before)
    assert plain.applied_operations == []


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_repeats_the_measurement_and_the_next_one_differs(name, image):
    make, make_d, arguments = PAIRS[name]
    one, two = make(**arguments).set_random_state(7), make(**arguments).set_random_state(7)
    first = numbers(one(image))
    assert torch.equal(first, numbers(two(image)))
    assert torch.equal(first, numbers(one(image, randomize=False)))
    assert not torch.equal(first, numbers(one(image)))
    assert not torch.equal(first, numbers(make(**arguments).set_random_state(8)(image)))
    data = make_d("image", **arguments).set_random_state(7)({"image": image})
    kspace = data.get("image_kspace")
    assert torch.equal(first, data["image"].as_tensor() if kspace is None else torch.view_as_real(kspace))
    pair = make_d(["a", "b"], **arguments).set_random_state(7)({"a": image, "b": image})
    assert not torch.equal(pair["a"], pair["b"])


@pytest.mark.parametrize("name", PAIRS)
def test_what_was_done_is_traced(name, image):
    make, make_d, arguments = PAIRS[name]
    transform = make(**arguments)
    (done,) = volume(transform(image)).applied_operations
    assert done["class"] == make.__name__
    assert tuple(done["orig_size"]) == SHAPE
    if name in RANDOM:
        assert done["extra_info"]["seed"] == transform.seed
    data = make_d("image", **arguments)({"image": image, "other": 1})
    assert len(data["image"].applied_operations) == 1
    assert data["other"] == 1
    assert make_d("absent", **arguments, allow_missing_keys=True)({"other": 1}) == {"other": 1}
    with pytest.raises(KeyError):
        make_d("absent", **arguments)({"other": 1})


@pytest.mark.parametrize("name", PAIRS)
def test_a_chain_with_a_simulation_goes_back_to_the_grid_of_the_volume(name, image):
    _, make_d, arguments = PAIRS[name]
    chain = Compose([Orientationd("image", "RAS", labels=None), CropForegroundd("image", "image", margin=1)])
    back = Compose([*chain.transforms, make_d("image", **arguments)])
    found = back.inverse(back({"image": image}))["image"]
    assert found.shape == image.shape
    assert found.applied_operations == []
    torch.testing.assert_close(found.affine, image.affine)
    # The volume itself comes back as well as the measurement tells.
    assert torch.corrcoef(torch.stack([found.as_tensor().flatten(), image.as_tensor().flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("name", PAIRS)
def test_batches_are_collated(name, image):
    _, make_d, arguments = PAIRS[name]
    batch = list_data_collate([make_d("image", **arguments)({"image": image}) for _ in range(2)])
    assert len(batch["image"]) == 2
    assert all(len(one["image"].applied_operations) == 1 for one in decollate_batch(batch))


def test_names_follow_monais_conventions():
    for make, make_d, _ in PAIRS.values():
        assert make_d.__name__ == f"{make.__name__}d"
        assert issubclass(make, InvertibleTransform)
        assert make_d.backend == make.backend
        for suffix in ("D", "Dict"):
            assert getattr(public, f"{make.__name__}{suffix}") is make_d


def test_kspace_is_the_scan_of_the_volume_with_the_noise_it_says(image):
    scan = SimulateKspace(partial(random_mask, axes=(1, 2), acceleration=2), coils=5, noise=0.02)(image)
    noiseless = CartesianMRI(scan.mask, scan.maps)(image.as_tensor()[None])[0]
    assert float(scan.noise_std) == pytest.approx(0.02 * float((scan.maps.abs() * image.as_tensor()).max()))
    left = torch.view_as_real((scan.kspace - noiseless)[scan.mask.expand(scan.kspace.shape)])
    # Of 2 x 5 x 12 x 180 numbers: their standard deviation is known to 1 / sqrt(2 x 21600) = 0.5 %.
    assert float(left.std()) == pytest.approx(float(scan.noise_std), rel=0.025)
    assert not scan.kspace[~scan.mask.expand(scan.kspace.shape)].any()
    assert float(scan.mask.float().mean()) == pytest.approx(1 / 2)
    # The maps are those of the coils, all turned by the phase of the image.
    turn = (scan.maps * simulate_maps(5, SHAPE).conj()).sum(0)
    torch.testing.assert_close(turn.abs(), torch.ones_like(turn.abs()))
    assert turn.angle().std() > 0.1


def test_a_phase_is_smooth_and_another_for_each_seed():
    phase, other = (simulate_phase((30, 40, 20), torch.Generator().manual_seed(s)) for s in (0, 1))
    for axis in range(3):
        # Of a polynomial of the second degree the second differences are constant, the third are 0.
        second = phase.double().diff(n=2, dim=axis)
        assert second.std() < 1e-5
        assert phase.diff(dim=axis).abs().max() < 0.5
    assert phase.std() > 0.3
    assert not torch.allclose(phase, other)


def test_simulated_and_loaded_scans_have_the_same_items(image, tmp_path):
    data = SimulateKspaced("image")({"image": image})
    raw = make_raw(
        *(data["image_kspace"].numpy(), tmp_path / "a.h5", "voxscore", data["image_mask"].numpy()),
        maps=data["image_maps"].numpy(),
        affine=image.affine.numpy(),
    )
    loaded = LoadKspaced("image")({"image": raw})
    assert loaded.keys() == data.keys()
    for key, part in loaded.items():
        assert (part.shape, part.dtype) == (data[key].shape, data[key].dtype)
    torch.testing.assert_close(loaded["image"].affine, data["image"].affine)


@pytest.mark.parametrize(
    "geometry", [RAYS, partial(FanBeam, angles=ANGLES, source_to_isocentre=60, source_to_detector=90)]
)
def test_sinograms_are_in_attenuation_times_millimetres(image, geometry):
    sinogram = SimulateSinogram(geometry)(image)
    rays = geometry(SHAPE[:2])
    width = float(image.pixdim[0])
    torch.testing.assert_close(sinogram.as_tensor(), width * rays(image.as_tensor()[None])[0])
    torch.testing.assert_close(sinogram.affine, image.affine)


def test_parallel_rays_see_all_of_a_slice_from_every_side(image):
    """The integral over the detector is that over the slice, whatever the angle."""
    sinogram = SimulateSinogram(RAYS)(image).as_tensor()
    width = float(image.pixdim[0])
    area = image.as_tensor().sum((1, 2)) * width**2
    seen = sinogram.sum(2) * width
    # Linear interpolation along rows keeps their sum to a hundredth or so.
    torch.testing.assert_close(seen, area[:, None].expand_as(seen), rtol=0.03, atol=0.02)


def test_photons_make_noise_that_fewer_make_larger(image):
    clean = SimulateSinogram(RAYS)(image * 0.05).as_tensor()
    for photons in (1e3, 1e5):
        noisy = SimulateSinogram(RAYS, photons)(image * 0.05).as_tensor()
        # The variance of a line integral p is exp(p) / photons.
        z = (noisy - clean) * (photons * torch.exp(-clean)).sqrt()
        assert float(z.std()) == pytest.approx(1, rel=0.02)


def test_thick_slices_lie_in_the_middle_of_their_blocks(image):
    coarse = SimulateLowResolution((1, 2, 3))(image)
    torch.testing.assert_close(coarse.as_tensor(), Downsample(SHAPE, (1, 2, 3))(image.as_tensor()[None])[0])
    voxel = torch.tensor([3.0, 4.0, 2.0, 1.0]).double()
    fine = torch.tensor([3, 4 * 2 + 0.5, 2 * 3 + 1, 1]).double()
    torch.testing.assert_close(coarse.affine @ voxel, image.affine @ fine)
    assert coarse.meta["spatial_shape"].tolist() == [12, 10, 6]


def test_a_linear_volume_survives_thick_slices():
    """Block means of a ramp lie on it, and so does their linear interpolation, away from the ends."""
    ramp = MetaTensor(torch.arange(24.0).expand(1, 4, 5, 24).clone())
    thick = SimulateLowResolution((1, 1, 4))
    back = thick.inverse(thick(ramp))
    torch.testing.assert_close(back[..., 2:-2].as_tensor(), ramp[..., 2:-2].as_tensor(), rtol=0, atol=1e-4)


def test_noise_is_a_share_of_the_maximum(image):
    large = MetaTensor(torch.zeros(1, 40, 40, 40))
    large[0, 0, 0, 0] = 50
    gaussian = SimulateNoise(0.1)(large).as_tensor()[0, 1:]
    rician = SimulateNoise(0.1, rician_noise)(large).as_tensor()[0, 1:]
    # 62400 numbers: 0.3 % for the deviation; of a Rayleigh distribution the mean is sqrt(pi/2) deviations.
    assert float(gaussian.std()) == pytest.approx(5, rel=0.015)
    assert float(rician.mean()) == pytest.approx(5 * math.sqrt(math.pi / 2), rel=0.015)


BAD = {
    "no noise": (lambda x: SimulateNoise(0.0), "noise: is 0.0 of the maximum"),
    "negative noise": (lambda x: SimulateKspace(noise=-1), "noise: is -1 of the maximum"),
    "no photons": (lambda x: SimulateSinogram(RAYS, 0), "photons: are 0"),
    "two channels": (lambda x: SimulateKspace()(x.repeat(2, 1, 1, 1)), r"volume: has shape \(2, 12"),
    "voxels that are not square": (
        lambda x: SimulateSinogram(RAYS)(MetaTensor(x.as_tensor(), affine=np.diag([1, 2, 1, 1.0]))),
        "volume: has voxels of 1 x 2 mm",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused(name, image):
    act, fault = BAD[name]
    with pytest.raises(UserError, match=fault):
        act(image)


def test_builds_from_a_configuration(image):
    config = {
        "simulate": {
            "_target_": "voxscore.transforms.SimulateKspaced",
            "keys": "image",
            "coils": 2,
            "mask": {
                "_target_": "voxscore.measurement.poisson_disc_mask",
                "_mode_": "callable",
                "axes": [1, 2],
                "acceleration": 3,
            },
        }
    }
    data = ConfigParser(config).get_parsed_content("simulate")({"image": image})
    assert len(data["image_kspace"]) == 2
    assert int(data["image_mask"].sum()) == round(20 * 18 / 3)
