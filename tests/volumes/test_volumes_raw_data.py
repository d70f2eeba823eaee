"""Raw data survive their file, and parts that disagree are one clear error."""

import errno
import os
from dataclasses import fields, replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from voxscore.errors import UserError
from voxscore.volumes import (
    RawData,
    Sinogram,
    centred_fft,
    centred_ifft,
    is_sinogram,
    make_raw,
    make_sinogram,
    read_raw,
    read_sinogram,
    write_raw,
    write_sinogram,
)

RNG = np.random.default_rng(0)
SHAPE = (6, 5, 4)


def noise(*shape):
    return (RNG.normal(size=shape) + 1j * RNG.normal(size=shape)).astype(np.complex64)


KSPACE, MAPS, MASK = noise(2, *SHAPE), noise(2, *SHAPE), RNG.random((1, 5, 4)) < 0.6
AFFINE = np.array([[0, -1.5, 0, 3], [2, 0, 0, -4], [0, 0, 3, 1 / 3], [0, 0, 0, 1]])


def raw(**change):
    parts = {"kspace": KSPACE, "path": Path("a/b.h5"), "kind": "bart", "mask": MASK, "maps": MAPS, "affine": AFFINE}
    return make_raw(**(parts | change))


def sinogram(**change):
    parts = {
        "sinogram": RNG.normal(size=(7, 9, 4)).astype(np.float32),
        "angles": np.linspace(0, np.pi, 7, endpoint=False),
        "geometry": "parallel",
        "detector_spacing": 0.9,
        "image_shape": (6, 5),
        "spacing": (2.0, 1.5, 3.0),
        "path": Path("a/b.h5"),
        "affine": AFFINE,
    }
    return make_sinogram(**(parts | change))


FAN = {"geometry": "fan", "source_to_isocentre": 595.0, "source_to_detector": 1085.6}


def assert_same(found, expected, but=()):
    for field in fields(expected):
        if field.name not in but:
            a, b = getattr(found, field.name), getattr(expected, field.name)
            assert np.array_equal(a, b), field.name
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None), field.name


def hdf5(path, attributes=None, **datasets):
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            file[name] = array
        file.attrs.update(attributes or {})
    return path


def own(path, attributes=None, **datasets):
    parts = {"kspace": KSPACE} | datasets
    return hdf5(path, {"voxscore": "k-space", "version": 1} | (attributes or {}), **parts)


# The transform


@pytest.mark.parametrize("shape", [(6, 5, 4), (7, 1, 3), (8, 8, 8)])
def test_the_transform_is_unitary_and_its_origin_is_at_half(shape):
    a, b = noise(2, *shape), noise(2, *shape)
    np.testing.assert_allclose(centred_ifft(centred_fft(a)), a, atol=1e-6)
    assert np.vdot(centred_fft(a), b) == pytest.approx(np.vdot(a, centred_ifft(b)), rel=1e-4)
    point = np.zeros(shape)
    point[tuple(n // 2 for n in shape)] = 1
    np.testing.assert_allclose(centred_fft(point), np.full(shape, np.prod(shape) ** -0.5), atol=1e-7)
    np.testing.assert_allclose(centred_ifft(point), np.full(shape, np.prod(shape) ** -0.5), atol=1e-7)


def test_a_shift_by_one_voxel_is_a_phase_that_grows_from_the_origin():
    x = noise(*SHAPE)
    k = np.arange(6) - 3
    expected = centred_fft(x) * np.exp(-2j * np.pi * k / 6)[:, None, None]
    np.testing.assert_allclose(centred_fft(np.roll(x, 1, axis=0)), expected, atol=1e-6)


def test_a_gaussian_goes_to_a_gaussian():
    n = 32
    r = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij"))
    x = np.exp(-0.5 * (r**2).sum(0) / 2**2)
    closed = (2 * np.pi * 2**2) ** 1.5 * np.exp(-2 * np.pi**2 * 2**2 * ((r / n) ** 2).sum(0)) / n**1.5
    np.testing.assert_allclose(centred_fft(x), closed, atol=1e-5)  # the tail cut off at 8 deviations is below


# Round trips


@pytest.mark.parametrize(
    "change", [{}, {"maps": None}, {"mask": None}, {"affine": None}, {"crop": (4, 5, 2)}, {"kspace": 1e-30 * KSPACE}]
)
def test_raw_data_come_back(tmp_path, change):
    written = raw(**change)
    write_raw(written, tmp_path / "case.h5")
    found = read_raw(tmp_path / "case.h5")
    assert_same(found, written, but=("path", "name", "kind"))
    assert (found.name, found.kind, found.path) == ("case", "voxscore", tmp_path / "case.h5")


def test_facts_of_raw_data():
    made = raw()
    assert (made.shape, made.name) == (SHAPE, "b")
    np.testing.assert_allclose(made.spacing, (2, 1.5, 3))
    assert np.array_equal(made.kspace, KSPACE * MASK)
    assert np.array_equal(raw(affine=None).affine, np.eye(4))


@pytest.mark.parametrize("change", [{}, FAN, {"affine": None}])
def test_sinograms_come_back(tmp_path, change):
    written = sinogram(**change)
    write_sinogram(written, tmp_path / "case.hdf5")
    assert is_sinogram(tmp_path / "case.hdf5")
    found = read_sinogram(tmp_path / "case.hdf5")
    assert_same(found, written, but=("path", "name"))
    assert (found.name, found.path) == ("case", tmp_path / "case.hdf5")
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), (2, 1.5, 3))


def test_a_sinogram_written_by_hand(tmp_path):
    facts = {"geometry": "parallel", "detector_spacing": 1, "image_shape": [6, 5], "spacing": [1, 1, 2]}
    path = hdf5(tmp_path / "a.h5", facts, sinogram=np.ones((3, 8, 2)), angles=[0, 1, 2])
    found = read_sinogram(path)
    assert isinstance(found, Sinogram)
    assert (found.sinogram.dtype, found.image_shape) == (np.float32, (6, 5))
    assert np.array_equal(found.affine, np.diag([1, 1, 2, 1]))


def test_what_is_a_sinogram(tmp_path):
    (tmp_path / "text").write_text("text")
    assert not is_sinogram(tmp_path / "text")
    assert not is_sinogram(tmp_path / "absent")
    assert not is_sinogram(own(tmp_path / "a.h5"))


def test_every_dataset_has_a_checksum(tmp_path):
    write_raw(raw(), tmp_path / "case.h5")
    with h5py.File(tmp_path / "case.h5") as file:
        assert sorted(file) == ["affine", "kspace", "maps", "mask"]
        assert all(file[name].fletcher32 for name in file)


def test_zeros_between_the_samples_take_no_room(tmp_path):
    kspace = noise(2, 32, 32, 16)
    write_raw(raw(kspace=kspace, mask=np.arange(32) % 4 == 0, maps=None), tmp_path / "case.h5")
    assert (
        tmp_path / "case.h5"
    ).stat().st_size < 0.45 * kspace.nbytes  # of a quarter sampled; headers and the ends of runs are the rest


# Masks and maps of their own


def save_npy(path, array, maps):
    np.save(path / "a.npy", array)
    return path / "a.npy"


def save_nifti(path, array, maps):
    image = nib.Nifti1Image(np.moveaxis(array, 0, -1) if maps else array.astype(np.uint8), np.eye(4))
    image.to_filename(path / "a.nii.gz")
    return path / "a.nii.gz"


def save_named(path, array, maps):
    return hdf5(path / "a.h5", other=np.zeros(3), **{"maps" if maps else "mask": array})


def save_only(path, array, maps):
    return hdf5(path / "a.h5", anything=array)


@pytest.mark.parametrize("save", [save_npy, save_nifti, save_named, save_only])
def test_masks_and_maps_of_their_own(tmp_path, save):
    for folder in ("data", "mask", "maps"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "data" / "k.h5"
    write_raw(raw(mask=np.ones((1, 1, 1)), maps=np.ones_like(MAPS), crop=(4, 5, 2)), path)
    full = np.broadcast_to(MASK, SHAPE)
    found = read_raw(path, save(tmp_path / "mask", full, False), save(tmp_path / "maps", MAPS, True))
    assert np.array_equal(found.mask, full)
    assert np.array_equal(found.maps, MAPS)
    assert np.array_equal(found.kspace, KSPACE * MASK)
    assert np.array_equal(found.affine, AFFINE)
    assert found.crop == (4, 5, 2)


@pytest.mark.parametrize(
    ("mask", "shape"),
    [(np.eye(5)[2], (1, 5, 1)), (MASK[0], (1, 5, 4)), (MASK[..., None], (1, 5, 4)), (np.ones(SHAPE, int), SHAPE)],
)
def test_shapes_of_masks(mask, shape):
    made = raw(mask=mask)
    assert made.mask.shape == shape
    assert np.array_equal(made.kspace, KSPACE * mask.reshape(shape))


def test_a_given_mask_adds_nothing_to_what_was_sampled(tmp_path):
    half, given = np.arange(5) < 3, np.arange(5) > 1
    np.save(tmp_path / "a.npy", given)
    np.save(tmp_path / "b.npy", ~half)
    path = own(tmp_path / "k.h5", mask=half)
    assert read_raw(path, tmp_path / "a.npy").mask.ravel().tolist() == [False, False, True, False, False]
    with pytest.raises(UserError, match="samples only what the k-space does not hold") as caught:
        read_raw(path, tmp_path / "b.npy")
    assert caught.value.subject == str(tmp_path / "b.npy")


# Bad input

BAD_PARTS = {
    "three-axes": ({"kspace": KSPACE[0]}, "shape 6x5x4"),
    "empty": ({"kspace": KSPACE[:0]}, "shape 0x6x5x4"),
    "text": ({"kspace": np.full(KSPACE.shape, b"a")}, "not numbers"),
    "nan": (
        {"kspace": np.where(np.arange(240).reshape(2, *SHAPE) == 7, np.nan, KSPACE)},
        "1 of 240 values of its k-space",
    ),
    "zero": ({"kspace": 0 * KSPACE}, "zero wherever"),
    "zero-under-mask": ({"kspace": KSPACE * ~MASK}, "zero wherever"),
    "zero-without-mask": ({"kspace": 0 * KSPACE, "mask": None}, "zero wherever"),
    "mask-shape": ({"mask": np.ones((6, 5, 3))}, "6x5x3 does not fit k-space of 6x5x4"),
    "mask-lines": ({"mask": np.ones(6)}, "does not fit"),
    "mask-plane": ({"mask": np.ones((6, 5))}, "does not fit"),
    "mask-axes": ({"mask": np.ones((6, 5, 4, 2))}, "does not fit"),
    "mask-number": ({"mask": np.ones(())}, "does not fit"),
    "mask-values": ({"mask": 0.5 * MASK}, "other values than 0 and 1"),
    "mask-nan": ({"mask": np.full(SHAPE, np.nan)}, "other values than 0 and 1"),
    "mask-empty": ({"mask": 0 * MASK}, "samples nothing"),
    "maps-coils": ({"maps": MAPS[:1]}, "coil maps have shape 1x6x5x4"),
    "maps-grid": ({"maps": MAPS[..., :3]}, "coil maps have shape 2x6x5x3"),
    "maps-nan": ({"maps": np.inf * MAPS.real}, "values of its coil maps"),
    "maps-zero": ({"maps": 0 * MAPS}, "zero everywhere"),
    "affine-shape": ({"affine": np.eye(3)}, "affine has shape 3x3"),
    "affine-flat": ({"affine": np.diag([1, 1, 0, 1])}, "singular"),
    "crop": ({"crop": (6, 5, 5)}, "crop"),
}


@pytest.mark.parametrize(("change", "fault"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_parts_that_disagree(change, fault):
    with pytest.raises(UserError, match=fault) as caught:
        raw(**change)
    assert caught.value.subject == str(Path("a/b.h5"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"sinogram": np.ones((7, 9))}, "shape 7x9"),
        ({"sinogram": np.ones((7, 9, 4), complex)}, "complex"),
        ({"sinogram": np.full((7, 9, 4), np.nan)}, "NaN"),
        ({"sinogram": np.zeros((7, 9, 4))}, "zero everywhere"),
        ({"angles": np.zeros(6)}, "6 angles for 7 projections"),
        ({"angles": np.full(7, np.inf)}, "not finite"),
        ({"geometry": "cone"}, "geometry is 'cone'"),
        ({"geometry": "fan"}, "lacks a distance"),
        ({"detector_spacing": 0}, "lacks a distance, or one is not positive"),
        ({"spacing": (1, 1, np.nan)}, "lacks a distance, or one is not positive"),
        (FAN | {"source_to_isocentre": 2000.0}, "not behind the isocentre"),
        (FAN | {"geometry": "parallel"}, "come from no source"),
        ({"image_shape": (0, 5)}, "0x5 pixels"),
        ({"affine": np.eye(4)}, "voxel sizes of its affine"),
    ],
)
def test_sinograms_that_are_none(change, fault):
    with pytest.raises(UserError, match=fault):
        sinogram(**change)


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])
    return path


def flipped(path):
    write_raw(raw(), path)
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["kspace"].id.get_chunk_info(0)
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def with_text(text):
    def make(path):
        path.write_text(text)
        return path

    return make


BAD_FILES = {
    "absent": (lambda path: path, "no such file"),
    "folder": (lambda path: path.mkdir() or path, "is a folder"),
    "empty": (with_text(""), "empty file"),
    "text": (with_text("no samples"), "neither HDF5 nor a BART file"),
    "cut": (lambda path: cut(own(path)), "damaged HDF5"),
    "flipped": (flipped, "damaged HDF5"),
    "nothing": (lambda path: hdf5(path), "holds nothing; expected: kspace"),
    "layout": (lambda path: hdf5(path, image=np.ones(3), dose=np.ones(3)), "holds dose, image; expected: kspace"),
    "no-order": (lambda path: hdf5(path, kspace=KSPACE), "no attribute 'voxscore'"),
    "kspace-is-a-group": (lambda path: hdf5(path, {"voxscore": "k-space"}, **{"kspace/a": KSPACE}), "expected: kspace"),
    "version": (lambda path: own(path, {"version": 2}), "version 2, not 1"),
    "coils": (lambda path: own(path, maps=MAPS[:1]), "coil maps have shape 1x6x5x4"),
    "crop": (lambda path: own(path, {"crop": [1, 2]}), "crop is not three"),
    "sinogram": (lambda path: hdf5(path, sinogram=np.ones(3), angles=np.ones(3)), "holds a sinogram"),
}


@pytest.mark.parametrize(("make", "fault"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(tmp_path, make, fault):
    path = make(tmp_path / "case.h5")
    with pytest.raises(UserError, match=fault) as caught:
        read_raw(path)
    assert caught.value.subject == str(path)


@pytest.mark.parametrize(
    ("facts", "datasets", "fault"),
    [
        ({}, ["sinogram"], "holds sinogram; expected: sinogram and angles"),
        ({}, ["sinogram", "angles"], "lacks the attributes geometry, detector_spacing, image_shape, spacing"),
        (
            {"geometry": "fan", "detector_spacing": 1, "image_shape": [1, 2, 3], "spacing": [1, 1, 1]},
            ["sinogram", "angles"],
            "not two, three and single",
        ),
        ({"version": 9}, ["sinogram", "angles"], "version 9"),
    ],
)
def test_bad_sinogram_files(tmp_path, facts, datasets, fault):
    path = hdf5(tmp_path / "case.h5", facts, **{name: np.ones((2, 2, 2)) for name in datasets})
    with pytest.raises(UserError, match=fault):
        read_sinogram(path)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.npy", b"\x93NUMPY", "not what its suffix says"),
        ("a.nii.gz", b"no nifti", "not what its suffix says"),
        ("a.txt", b"1 0 1", "does not read mask from this kind"),
        ("a.npy", b"", "empty file"),
        ("a.npy", None, "no such file"),
    ],
)
def test_bad_mask_files(tmp_path, name, content, fault):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=fault) as caught:
        read_raw(own(tmp_path / "k.h5"), tmp_path / name)
    assert caught.value.subject == str(tmp_path / name)


def test_the_file_that_does_not_fit_is_named(tmp_path):
    path = own(tmp_path / "k.h5")
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    for option in ("mask", "maps"):
        with pytest.raises(UserError, match="2x3") as caught:
            read_raw(path, **{option: tmp_path / "a.npy"})
        assert caught.value.subject == str(tmp_path / "a.npy")
    with pytest.raises(UserError, match="holds a, b; expected: mask"):
        read_raw(path, hdf5(tmp_path / "m.h5", a=MASK, b=MASK))


# Writing


@pytest.mark.parametrize("write", [lambda *a: write_raw(raw(), *a), lambda *a: write_sinogram(sinogram(), *a)])
def test_an_existing_file_is_kept_unless_overwriting(tmp_path, write):
    path = tmp_path / "new" / "case.h5"
    write(path)
    kept = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write(path)
    assert path.read_bytes() == kept
    write(path, True)
    with pytest.raises(UserError, match="HDF5 only"):
        write(tmp_path / "case.npy")
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(path.parent) == ["case.h5"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "case.h5"
    write_raw(raw(), path)
    kept, create = path.read_bytes(), h5py.File.create_dataset

    def fail(self, name, *args, **options):
        if name == "maps":
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(self, name, *args, **options)

    monkeypatch.setattr(h5py.File, "create_dataset", fail)
    with pytest.raises(UserError, match="disk is full"):
        write_raw(replace(raw(), affine=2 * AFFINE), path, overwrite=True)
    assert os.listdir(tmp_path) == ["case.h5"]
    assert path.read_bytes() == kept


def test_raw_data_is_frozen():
    with pytest.raises(AttributeError):
        raw().name = "other"
    assert isinstance(raw(), RawData)
