"""Each format of others, written here from a known volume, gives that volume back through one transform."""

import sys
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

from voxscore.errors import UserError
from voxscore.volumes import centred_fft, centred_ifft, read_raw

RNG = np.random.default_rng(0)
# Even and odd extents, and coils that differ.
VOLUME = (RNG.normal(size=(12, 7, 5)) + 1j * RNG.normal(size=(12, 7, 5))).astype(np.complex64)
MAPS = (RNG.normal(size=(3, 12, 7, 5)) + 1j * RNG.normal(size=(3, 12, 7, 5))).astype(np.complex64)
COILS = MAPS * VOLUME
TOLERANCE = 1e-5  # of complex64 through a handful of transforms of unit-variance numbers

XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>
<H1resonanceFrequency_Hz>128000000</H1resonanceFrequency_Hz></experimentalConditions><encoding>
<encodedSpace><matrixSize><x>{n[0]}</x><y>{n[1]}</y><z>{n[2]}</z></matrixSize>
<fieldOfView_mm><x>{fov[0]}</x><y>{fov[1]}</y><z>{fov[2]}</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{n[0]}</x><y>{n[1]}</y><z>{n[2]}</z></matrixSize>
<fieldOfView_mm><x>{shown[0]}</x><y>{shown[1]}</y><z>{shown[2]}</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>6</maximum><center>{center}</center>
</kspace_encoding_step_1></encodingLimits><trajectory>{trajectory}</trajectory></encoding></ismrmrdHeader>"""


def xml(n=(12, 7, 1), fov=(24.0, 10.5, 3.0), shown=None, center=3, trajectory="cartesian"):
    return XML.format(n=n, fov=fov, shown=shown or fov, center=center, trajectory=trajectory).encode()


def oversampled(image):
    """k-space along x of an image of half the length, between values that do not matter."""
    n = image.shape[1]
    wide = RNG.normal(size=(image.shape[0], 2 * n, *image.shape[2:])).astype(np.complex64)
    wide[:, n // 2 : n // 2 + n] = image
    return wide


def slices(image):
    """Two-dimensional k-space (slices, coils, x, y) of an image (coils, x, y, z)."""
    return centred_fft(image, axes=(1, 2)).transpose(3, 0, 1, 2)


def fastmri(folder, kspace, header=None, mask=None):
    path = folder / "file.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = header or xml()
        if mask is not None:
            file["mask"] = mask
    return path


def scan(folder, image, header, by_slice=False, change=None, repeats=1, group="dataset"):
    """An ISMRMRD file of an image (coils, x, y, z); change(acquisition, number) may alter or (False) drop a readout."""
    axes = (1, 2) if by_slice else (1, 2, 3)
    kspace = centred_fft(image, axes=axes)
    path = folder / "scan.h5"
    readouts, number = [], 0
    for average in range(repeats):
        for k in range(kspace.shape[3]):
            for j in range(kspace.shape[2]):
                line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(kspace[:, :, j, k]))
                line.center_sample = kspace.shape[1] // 2
                line.scan_counter, line.idx.average, line.idx.kspace_encode_step_1 = number, average, j
                setattr(line.idx, "slice" if by_slice else "kspace_encode_step_2", k)
                if change is None or change(line, number) is not False:
                    readouts.append(line)
                number += 1
    with ismrmrd.File(str(path), "w") as file:
        file[group].acquisitions = readouts
    with h5py.File(path, "a") as file:
        file[group].create_dataset("xml", (1,), h5py.special_dtype(vlen=bytes))[0] = header
    return path


def bart(folder, array, name="data"):
    """array (x, y, z, coils, ...) as BART writes it."""
    extents = [*array.shape, *[1] * (16 - array.ndim)]
    (folder / f"{name}.hdr").write_text(f"# Dimensions\n{' '.join(map(str, extents))}\n# Command\nfft -u 7\n")
    (folder / f"{name}.cfl").write_bytes(array.astype("<c8").tobytes(order="F"))
    return folder / name


def assert_image(raw, image):
    np.testing.assert_allclose(centred_ifft(raw.kspace), image, atol=TOLERANCE * np.abs(image).max())


def test_fastmri(tmp_path):
    raw = read_raw(fastmri(tmp_path, slices(COILS)))
    assert_image(raw, COILS)
    assert raw.kspace.dtype == np.complex64
    assert (raw.kind, raw.name, raw.maps, raw.crop) == ("fastmri", "file", None, None)
    np.testing.assert_allclose(raw.spacing, (2, 1.5, 3))
    np.testing.assert_allclose(raw.affine, np.diag([2, 1.5, 3, 1]))
    assert raw.mask.all()


def test_fastmri_single_coil(tmp_path):
    raw = read_raw(fastmri(tmp_path, slices(COILS[:1])[:, 0]))
    assert_image(raw, COILS[:1])


def test_fastmri_oversampled_readout_is_removed(tmp_path):
    header = xml((24, 7, 1), fov=(48, 10.5, 3), shown=(24, 4.5, 3))
    raw = read_raw(fastmri(tmp_path, slices(oversampled(COILS)), header))
    assert_image(raw, COILS)
    np.testing.assert_allclose(raw.spacing, (2, 1.5, 3))
    assert raw.crop == (12, 3, 5)


def test_fastmri_mask_and_padding(tmp_path):
    kspace, mask = slices(COILS), np.array([1, 1, 0, 1, 0, 1, 1.0])
    kspace[..., 0] = 0  # a padded line, sampled as the mask has it
    raw = read_raw(fastmri(tmp_path, kspace, mask=mask))
    assert raw.mask.shape == (1, 7, 1)
    assert raw.mask.ravel().tolist() == [False, True, False, True, False, True, True]
    expected = centred_fft(COILS) * raw.mask
    np.testing.assert_allclose(raw.kspace, expected, atol=TOLERANCE * np.abs(expected).max())
    assert not raw.kspace[:, :, [0, 2, 4]].any()


def test_fastmri_slices_sampled_differently_are_refused(tmp_path):
    kspace = slices(COILS)
    kspace[2, ..., 4] = 0
    with pytest.raises(UserError, match="sampled at different places"):
        read_raw(fastmri(tmp_path, kspace))


@pytest.mark.parametrize(
    ("header", "shape"),
    [(b"<broken", (5, 3, 12, 7)), (b"<a/>", (5, 3, 12, 7)), (xml(fov=(0, 1, 1)), (5, 3, 12, 7)), (xml(), (12, 7))],
)
def test_fastmri_of_another_layout(tmp_path, header, shape):
    with pytest.raises(UserError, match=r"header lacks|has 2 axes") as caught:
        read_raw(fastmri(tmp_path, np.ones(shape, np.complex64), header))
    assert caught.value.subject == str(tmp_path / "file.h5")


def test_ismrmrd_in_three_dimensions(tmp_path):
    raw = read_raw(scan(tmp_path, COILS, xml((12, 7, 5), fov=(24, 10.5, 15))))
    assert_image(raw, COILS)
    assert (raw.kind, raw.crop) == ("ismrmrd", None)
    np.testing.assert_allclose(raw.affine, np.diag([2, 1.5, 3, 1]))
    assert raw.mask.tolist() == [[[True]]]


def test_ismrmrd_readout_oversampling_averages_and_lines_left_out(tmp_path):
    def change(line, number):
        if line.idx.kspace_encode_step_1 == 1:
            return False
        line.data[:] *= 3 if line.idx.average else 1
        return True

    header = xml((24, 7, 5), fov=(48, 10.5, 15), shown=(24, 10.5, 9))
    raw = read_raw(scan(tmp_path, oversampled(COILS), header, change=change, repeats=2))
    assert raw.mask.shape == (1, 7, 1)
    assert raw.mask.ravel().tolist() == [True, False, *[True] * 5]
    expected = 2 * centred_fft(COILS) * raw.mask
    np.testing.assert_allclose(raw.kspace, expected, atol=TOLERANCE * np.abs(expected).max())
    assert raw.crop == (12, 7, 3)


def test_ismrmrd_counters_are_placed_by_the_centre(tmp_path):
    def change(line, number):
        line.idx.kspace_encode_step_1 += 4

    assert_image(read_raw(scan(tmp_path, COILS, xml((12, 7, 5), center=7), change=change)), COILS)


def test_ismrmrd_lines_that_are_no_image_are_left_out(tmp_path):
    def change(line, number):
        if line.idx.average == 1:
            line.data[:] = 99
            line.set_flag((ismrmrd.ACQ_IS_NOISE_MEASUREMENT, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)[number % 2])
        elif number == 3:
            line.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
            line.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)

    assert_image(read_raw(scan(tmp_path, COILS, xml((12, 7, 5)), change=change, repeats=2)), COILS)


def test_ismrmrd_partial_echo_stays_where_it_was_sampled(tmp_path):
    def shorten(line, number):
        data = line.data[:, 3:].copy()
        line.resize(number_of_samples=9, active_channels=3)
        line.data[:] = data
        line.center_sample = 6 - 3

    header = xml((12, 7, 5), fov=(24, 10.5, 15), shown=(12, 10.5, 15))
    raw = read_raw(scan(tmp_path, COILS, header, change=shorten))
    assert raw.mask.ravel().tolist() == [False] * 3 + [True] * 9
    assert raw.crop == (6, 7, 5)  # cutting the image of incomplete readouts would not be exact
    expected = centred_fft(COILS) * raw.mask
    np.testing.assert_allclose(raw.kspace, expected, atol=TOLERANCE * np.abs(expected).max())


def test_ismrmrd_slices_lie_where_their_positions_say(tmp_path, oblique):
    lps = np.diag([-1.0, -1, 1, 1]) @ oblique
    directions = lps[:3, :3] / (0.7, 1.1, 3.3)
    counters = np.array([3, 0, 4, 1, 2])  # which slice counter the slices have along z

    def change(line, number):
        k = line.idx.slice
        line.read_dir[:], line.phase_dir[:], line.slice_dir[:] = directions.T
        line.position[:] = (lps @ [6, 3, k, 1])[:3]
        line.idx.slice = int(counters[k])

    header = xml((12, 7, 1), fov=(12 * 0.7, 7 * 1.1, 2.0))
    raw = read_raw(scan(tmp_path, COILS, header, by_slice=True, change=change, group="scan7"))
    assert_image(raw, COILS)
    np.testing.assert_allclose(raw.affine, oblique, atol=1e-4)  # the records hold single precision


def test_ismrmrd_volume_lies_where_its_centre_is_also_after_the_readout_is_cut(tmp_path, oblique):
    lps = np.diag([-1.0, -1, 1, 1]) @ oblique
    directions = lps[:3, :3] / (0.7, 1.1, 3.3)

    def change(line, number):
        line.read_dir[:], line.phase_dir[:], line.slice_dir[:] = directions.T
        line.position[:] = (lps @ [6, 3, 2, 1])[:3]

    header = xml((24, 7, 5), fov=(24 * 0.7, 7 * 1.1, 5 * 3.3), shown=(12 * 0.7, 7 * 1.1, 5 * 3.3))
    raw = read_raw(scan(tmp_path, oversampled(COILS), header, change=change))
    assert_image(raw, COILS)
    np.testing.assert_allclose(raw.affine, oblique, atol=1e-4)


def counter(name):
    return lambda line, number: setattr(line.idx, name, number % 2)


def field(name, value):
    def change(line, number):
        if isinstance(value, tuple):
            getattr(line, name)[:] = value
        else:
            setattr(line, name, value)

    return change


def skip_a_line_of_one_slice(line, number):
    return number != 9


def skip_a_slice(line, number):
    return line.idx.slice != 2


def turn_one(line, number):
    line.read_dir[:] = (1, 0, 0) if number else (0, 1, 0)


@pytest.mark.parametrize(
    ("options", "by_slice", "change", "fault"),
    [
        ({"trajectory": "spiral"}, False, None, "trajectory is 'spiral'"),
        ({}, False, counter("contrast"), "several volumes: its contrast counters"),
        ({}, False, counter("slice"), "2 slabs"),
        ({}, False, counter("set"), "several volumes: its set counters"),
        ({}, False, lambda line, _: line.set_flag(ismrmrd.ACQ_IS_REVERSE), "reversed"),
        ({}, False, lambda line, _: line.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT), "no readouts of image data"),
        ({}, False, turn_one, "differ in orientation"),
        ({}, False, field("read_dir", (1, 1, 0)), "no orthogonal axes"),
        ({"n": (12, 5, 5)}, False, None, "lies outside the 12x5x5"),
        ({"n": (10, 7, 5)}, False, None, "lies outside the 10x7x5"),
        ({}, True, skip_a_line_of_one_slice, "sampled at different places"),
        ({}, True, skip_a_slice, "not equally far apart, or some are missing"),
    ],
)
def test_ismrmrd_that_is_no_cartesian_volume(tmp_path, options, by_slice, change, fault):
    path = scan(tmp_path, COILS, xml(**({"n": (12, 7, 1 if by_slice else 5)} | options)), by_slice, change)
    with pytest.raises(UserError, match=fault) as caught:
        read_raw(path)
    assert caught.value.subject == str(path)


def test_ismrmrd_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    path = scan(tmp_path, COILS, xml((12, 7, 5)))
    monkeypatch.setitem(sys.modules, "ismrmrd", None)
    with pytest.raises(UserError, match="not installed") as caught:
        read_raw(path)
    assert "pip install" in caught.value.remedy


def test_ismrmrd_records_of_another_kind(tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["dataset/data"] = np.zeros(3)
        file["dataset/xml"] = np.array([xml()], dtype=object)
    with pytest.raises(UserError, match="records are damaged"):
        read_raw(path)


def test_several_ismrmrd_scans_are_refused(tmp_path):
    path = scan(tmp_path, COILS, xml((12, 7, 5)), group="a")
    with h5py.File(path, "a") as file:
        file.copy("a", "b")
    with pytest.raises(UserError, match="2 ISMRMRD scans: a, b"):
        read_raw(path)


@pytest.mark.parametrize("suffix", ["", ".cfl", ".hdr"])
def test_bart(tmp_path, suffix):
    base = bart(tmp_path, centred_fft(COILS).transpose(1, 2, 3, 0))
    raw = read_raw(f"{base}{suffix}")
    assert_image(raw, COILS)
    assert (raw.kind, raw.name) == ("bart", "data")
    assert np.array_equal(raw.affine, np.eye(4))


def test_bart_zeros_are_what_was_not_sampled(tmp_path):
    kspace = centred_fft(COILS)
    kspace[:, :, [1, 2]] = 0
    raw = read_raw(bart(tmp_path, kspace.transpose(1, 2, 3, 0)))
    assert raw.mask.shape == (1, 7, 1)
    assert np.array_equal(raw.kspace, kspace)


def test_bart_mask_and_maps(tmp_path):
    kspace, mask = bart(tmp_path, centred_fft(COILS).transpose(1, 2, 3, 0)), RNG.random((1, 7, 5)) < 0.5
    raw = read_raw(kspace, bart(tmp_path, mask, "mask"), bart(tmp_path, MAPS.transpose(1, 2, 3, 0), "maps"))
    assert np.array_equal(raw.mask, mask)
    assert np.array_equal(raw.maps, MAPS)
    assert not raw.kspace[:, :, ~mask[0]].any()


def damaged(change):
    def make(folder):
        base = bart(folder, centred_fft(COILS).transpose(1, 2, 3, 0))
        change(Path(f"{base}.hdr"), Path(f"{base}.cfl"))
        return base

    return make


@pytest.mark.parametrize(
    ("make", "subject", "fault"),
    [
        (damaged(lambda hdr, cfl: cfl.write_bytes(cfl.read_bytes()[:-8])), "data.cfl", "10072 bytes where .* 10080"),
        (damaged(lambda hdr, cfl: cfl.write_bytes(cfl.read_bytes() + b"12345678")), "data.cfl", "10088 bytes"),
        (damaged(lambda hdr, cfl: hdr.unlink()), "data.hdr", "no such file"),
        (damaged(lambda hdr, cfl: hdr.write_text("12 7 5 3")), "data.hdr", "no BART header"),
        (damaged(lambda hdr, cfl: hdr.write_text("# Dimensions\n12 -7 5 3")), "data.hdr", "no BART header"),
        (damaged(lambda hdr, cfl: hdr.write_text("# Dimensions\n")), "data.hdr", "no BART header"),
        (lambda folder: bart(folder, np.ones((4, 5, 6, 2, 2))), "data.cfl", "2 maps beside"),
        (lambda folder: bart(folder, np.ones((4, 5, 6, 2, 1, 3, 1, 1, 1, 1, 7))), "data.cfl", "3 echoes, 7 times"),
        (lambda folder: bart(folder, np.zeros((4, 5, 6, 2))), "data.cfl", "zero wherever"),
    ],
)
def test_bad_bart_files(tmp_path, make, subject, fault):
    base = make(tmp_path)
    with pytest.raises(UserError, match=fault) as caught:
        read_raw(base)
    assert caught.value.subject == str(tmp_path / subject)


def test_bart_header_without_data(tmp_path):
    (tmp_path / "only.hdr").write_text("# Dimensions\n1 1 1 1")
    with pytest.raises(UserError, match="no such file") as caught:
        read_raw(tmp_path / "only.hdr")
    assert caught.value.subject == str(tmp_path / "only.cfl")
