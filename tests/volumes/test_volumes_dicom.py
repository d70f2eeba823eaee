"""A DICOM series is read as one regular volume or refused."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid

from voxscore.errors import UserError
from voxscore.volumes import find_volumes, read_volume, write_volume


def test_voxels_and_places(save_series, voxels, affine):
    if np.linalg.det(np.diag([-1, -1, 1]) @ affine[:3, :3]) < 0:
        affine = affine @ np.diag([1, 1, -1, 1])  # slices are counted along the normal
    volume = read_volume(save_series(voxels, affine=affine))
    assert np.array_equal(volume.array, 2 * voxels - 10)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-7)
    assert volume.format == "dicom"
    assert volume.name == "series"


def test_slices_against_the_normal_are_turned_round(save_series, voxels, oblique):
    mirrored = oblique @ np.diag([1, 1, -1, 1])
    volume = read_volume(save_series(voxels, affine=mirrored))
    assert np.array_equal(volume.array, 2 * voxels[:, :, ::-1] - 10)
    np.testing.assert_allclose(volume.affine @ [0, 0, 4, 1], mirrored @ [0, 0, 0, 1], atol=1e-7)


def test_same_physical_points_as_itk(save_series, voxels):
    folder = save_series(voxels)
    volume = read_volume(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in volume.header])
    image = reader.Execute()
    for index in [(0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)]:
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], place, atol=1e-5)
        assert volume.array[index] == image[index]


def test_header_lists_the_slices_in_order(save_series, voxels):
    volume = read_volume(save_series(voxels))
    positions = [np.array(dcmread(p).ImagePositionPatient, float) * (-1, -1, 1) for p in volume.header]
    for k, position in enumerate(positions):
        np.testing.assert_allclose(position, (volume.affine @ [0, 0, k, 1])[:3], atol=1e-6)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_geometry_survives_in_itk_formats(save_series, voxels, tmp_path, suffix):
    volume = read_volume(save_series(voxels))
    write_volume(voxels, volume, tmp_path / f"out{suffix}")
    assert np.array_equal(read_volume(tmp_path / f"out{suffix}").affine, volume.affine)


def test_other_files_are_passed_over(save_series, voxels):
    folder = save_series(voxels, folder="study/series")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"junk")
    (folder / "notes.txt").write_text("nothing")
    (folder / "LICENSE").write_text("nothing")
    assert find_volumes(folder.parent) == [folder.parent]
    volume = read_volume(folder.parent)
    assert np.array_equal(volume.array, 2 * voxels - 10)
    assert volume.name == "study"


def test_slope_of_each_slice(save_series, voxels):
    def change(slice_, k):
        slice_.RescaleSlope = str(k + 1)

    volume = read_volume(save_series(voxels, change=change))
    assert np.array_equal(volume.array, voxels * np.arange(1, 6, dtype=np.float32) - 10)


def test_tilted_gantry_is_a_sheared_grid(save_series, voxels, oblique):
    sheared = oblique.copy()
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    np.testing.assert_allclose(read_volume(save_series(voxels, affine=sheared)).affine, sheared, atol=1e-7)


def test_several_series(save_series, voxels, tmp_path):
    first = save_series(voxels, folder="study/a", number=3)
    second = save_series(voxels[:, :, :4], folder="study/b", number=12)
    uid = str(dcmread(next(second.iterdir())).SeriesInstanceUID)
    study = tmp_path / "study"
    with pytest.raises(UserError) as caught:
        read_volume(study)
    message = str(caught.value)
    for part in (
        "2 DICOM series",
        "number 3 (MR 5 images 7x6",
        "number 12 (MR 4 images 7x6",
        uid[-12:],
        "--series",
    ):
        assert part in message
    assert "ecret" not in message
    assert read_volume(study, "3").name == "study_series3"
    assert read_volume(study, "012").array.shape == (7, 6, 4)
    assert read_volume(study, uid).array.shape == (7, 6, 4)
    assert read_volume(study, uid[-12:]).array.shape == (7, 6, 4)
    assert find_volumes(study, "3") == [study]
    assert first.exists()
    with pytest.raises(UserError, match="no DICOM series '4'"):
        read_volume(study, "4")


def test_two_series_of_one_number(save_series, voxels, tmp_path):
    save_series(voxels, folder="study/a", number=3)
    save_series(voxels, folder="study/b", number=3)
    with pytest.raises(UserError, match="fits 2 of its 2"):
        read_volume(tmp_path / "study", "3")


def test_volume_files_beside_dicom(save_series, voxels):
    folder = save_series(voxels)
    (folder / "result.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="both volume files and DICOM"):
        find_volumes(folder)
    assert find_volumes(folder, "3") == [folder]


def assert_refused(folder, fault):
    with pytest.raises(UserError, match=fault) as caught:
        read_volume(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert "ecret" not in message


def remove(folder, *wanted):
    """Delete slices by their place in space, counted from 1."""
    paths = read_volume(folder).header
    for number in wanted:
        paths[number - 1].unlink()


def test_missing_slice(save_series, voxels):
    folder = save_series(voxels)
    remove(folder, 3)
    assert_refused(folder, r"1 gap among 4 slices 3\.30 mm apart, between slices 2 and 3 \(6\.60 mm\)")


def test_missing_slices_in_two_places(save_series):
    folder = save_series(np.random.default_rng(0).integers(0, 99, (4, 5, 12)))
    remove(folder, 3, 4, 9)
    assert_refused(folder, r"2 gaps .* between slices 2 and 3 \(9\.90 mm\), 6 and 7 \(6\.60 mm\)")


def test_two_phases(save_series, voxels):
    uid = generate_uid()
    folder = save_series(voxels, uid=uid)
    save_series(voxels + 1, folder="series/second", uid=uid)
    assert_refused(folder, "10 images lie at only 5 positions")


def _set(keyword, value, slices=(2,)):
    def change(slice_, k):
        if k in slices:
            setattr(slice_, keyword, value)

    return change


def _drop(keyword):
    def change(slice_, k):
        if k == 2:
            delattr(slice_, keyword)

    return change


def _resize(slice_, k):
    if k == 2:
        slice_.Rows, slice_.PixelData = 3, bytes(2 * 7 * 3)


def _shift(slice_, k):
    if k == 2:
        along_row = np.array(slice_.ImageOrientationPatient[:3], float)
        slice_.ImagePositionPatient = [f"{v:.9f}" for v in np.array(slice_.ImagePositionPatient, float) + 2 * along_row]


def _color(slice_, k):
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PlanarConfiguration = 3, "RGB", 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_set("ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), "1 of 5 images have another orientation"),
        (_set("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "not two unit vectors"),
        (_set("PixelSpacing", [1, 2]), "2 different pixel spacings"),
        (_resize, "differ in size"),
        (_shift, r"slice 3 lies 2\.00 mm off the line"),
        (_drop("ImagePositionPatient"), "no ImagePositionPatient"),
        (_drop("ImageOrientationPatient"), "no ImageOrientationPatient"),
        (_drop("PixelSpacing"), "no PixelSpacing"),
        (_drop("PixelData"), "no pixel data"),
        (_set("PixelData", b"1234"), "pixel data are damaged"),
        (_color, "colour"),
    ],
)
def test_slices_that_are_no_volume(save_series, voxels, change, fault):
    assert_refused(save_series(voxels, change=change), fault)


def test_constant_series(save_series):
    assert_refused(save_series(np.ones((4, 5, 6))), "same value")


def test_single_slice(save_series, voxels):
    folder = save_series(voxels[:, :, :1])
    assert_refused(folder, "single 2-D")
    assert_refused(next(folder.iterdir()), "single 2-D")


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 128 + b"DICM" + b"\xff" * 60])
def test_damaged_member(save_series, voxels, content):
    folder = save_series(voxels)
    (folder / "IM999.dcm").write_bytes(content)
    assert_refused(folder, r"IM999\.dcm")


def test_truncated_member(save_series, voxels):
    folder = save_series(voxels)
    path = read_volume(folder).header[-1]
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(folder, "damaged")


def test_segmentations_are_not_images(save_series, voxels, tmp_path):
    folder = save_series(voxels, folder="study/a")
    other = save_series(voxels, folder="study/b", change=lambda s, k: setattr(s, "Modality", "SEG"))
    assert read_volume(tmp_path / "study").array.shape == voxels.shape
    shutil.rmtree(folder)
    assert_refused(tmp_path / "study", "no DICOM images")
    assert other.exists()


def test_compressed(save_series, voxels):
    def compress(slice_, k):
        slice_.compress(RLELossless, generate_instance_uid=False)

    assert np.array_equal(read_volume(save_series(voxels, change=compress)).array, 2 * voxels - 10)


def test_no_decoder(save_series, voxels, monkeypatch):
    def pretend(slice_, k):
        slice_.compress(RLELossless, generate_instance_uid=False)
        slice_.file_meta.TransferSyntaxUID = JPEG2000Lossless

    folder = save_series(voxels, change=pretend)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    assert_refused(folder, "no decoder for its compression .JPEG 2000")


def test_multiframe(save_series, voxels, tmp_path):
    import highdicom as hd

    single = read_volume(save_series(voxels))
    enhanced = hd.legacy.LegacyConvertedEnhancedMRImage(
        [dcmread(path) for path in single.header],
        series_instance_uid=generate_uid(),
        series_number=7,
        sop_instance_uid=generate_uid(),
        instance_number=1,
    )
    path = tmp_path / "enhanced.dcm"
    enhanced.save_as(path)
    volume = read_volume(path)
    assert find_volumes(path) == [path]
    assert volume.name == "enhanced"
    order = slice(None) if np.allclose(volume.affine, single.affine, atol=1e-5) else slice(None, None, -1)
    np.testing.assert_allclose(volume.array[:, :, order], single.array)
    corner = [0, 0, 0 if order == slice(None) else 4, 1]
    np.testing.assert_allclose(volume.affine @ corner, single.affine @ [0, 0, 0, 1], atol=1e-5)
