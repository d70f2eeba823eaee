"""A derived series keeps grid and intensities, stays in its study and names what it was made from."""

import os
import re

import numpy as np
import pytest
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid

from voxscore.errors import UserError
from voxscore.volumes import Label, read_volume, write_dicom_derived, write_dicom_seg

SAME = ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "FrameOfReferenceUID", "Modality")


def intensities(shape=(7, 6, 5), scale=1.0, offset=0.0):
    return (offset + scale * np.random.default_rng(0).normal(size=shape).cumsum(0)).astype(np.float32)


def headers(folder):
    return [dcmread(path) for path in sorted(folder.iterdir())]


def assert_same_volume(volume, array, affine):
    step = np.ptp(array) / 65535
    rounding = np.abs(array).max() * np.finfo(np.float32).eps  # of the reader's float32
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-6)
    assert np.abs(volume.array.astype(float) - array).max() <= 0.5 * step * (1 + 1e-4) + rounding


@pytest.fixture
def source(save_series, voxels):
    return read_volume(save_series(voxels))


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-6, 0), (1e6, -3e7), (300, 1000)])
def test_grid_and_intensities_come_back(tmp_path, source, scale, offset):
    array = intensities(scale=scale, offset=offset)
    write_dicom_derived(array, source, tmp_path / "out", "denoised")
    assert_same_volume(read_volume(tmp_path / "out"), array, source.affine)


def test_a_finer_grid_comes_back(tmp_path, source, oblique):
    affine = oblique @ np.diag([1, 1, 1 / 3, 1])
    array = intensities((7, 6, 13))
    write_dicom_derived(array, source, tmp_path / "out", "super-resolved", affine=affine)
    assert_same_volume(read_volume(tmp_path / "out"), array, affine)
    series = headers(tmp_path / "out")
    assert len(series) == 13
    assert {float(header.SpacingBetweenSlices) for header in series} == {1.1}
    positions = {tuple(header.ImagePositionPatient) for header in series}
    assert len(positions) == 13


def test_a_grid_against_the_normal_is_turned_round(tmp_path, source, oblique):
    array = intensities()
    write_dicom_derived(array, source, tmp_path / "out", "mirrored", affine=oblique @ np.diag([1, 1, -1, 1]))
    volume = read_volume(tmp_path / "out")
    np.testing.assert_allclose(volume.affine @ [0, 0, 4, 1], oblique @ [0, 0, 0, 1], atol=1e-6)
    assert_same_volume(volume, array[:, :, ::-1], volume.affine)


def test_it_stays_in_the_study_as_a_series_of_its_own(tmp_path, source):
    write_dicom_derived(intensities(), source, tmp_path / "out", "denoised", derivation="Removed noise")
    original = dcmread(source.header[0])
    for header in headers(tmp_path / "out"):
        for keyword in SAME:
            assert header[keyword].value == original[keyword].value
        assert header.SOPClassUID == header.file_meta.MediaStorageSOPClassUID == MRImageStorage
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        assert list(header.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
        assert (header.SeriesDescription, header.DerivationDescription) == ("denoised", "Removed noise")
        assert header.SeriesNumber == 1001 != original.SeriesNumber
        assert header.SeriesInstanceUID != original.SeriesInstanceUID
        assert (header.Manufacturer, header.RescaleType) == ("voxscore", "US")
    assert read_volume(tmp_path, series="1001").array.shape == (7, 6, 5)  # beside its source


def test_every_file_refers_to_every_source_image(tmp_path, source):
    write_dicom_derived(intensities((7, 6, 9)), source, tmp_path / "out", "finer", affine=source.affine)
    originals = [dcmread(path) for path in source.header]
    expected = [(original.SOPClassUID, original.SOPInstanceUID) for original in originals]

    def references(sequence):
        return [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in sequence]

    for header in headers(tmp_path / "out"):
        assert references(header.SourceImageSequence) == expected
        codes = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in header.SourceImageSequence]
        assert codes == ["121322"] * 5
        (series,) = header.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == originals[0].SeriesInstanceUID
        assert references(series.ReferencedInstanceSequence) == expected


def test_uids_are_uuids_that_the_content_decides(tmp_path, source):
    def uids(name, array=None, description="a", **options):
        write_dicom_derived(intensities() if array is None else array, source, tmp_path / name, description, **options)
        series = headers(tmp_path / name)
        return [str(series[0].SeriesInstanceUID), *(str(header.SOPInstanceUID) for header in series)]

    first = uids("first")
    assert len(set(first)) == 6
    assert all(re.fullmatch(r"2\.25\.[1-9]\d{1,38}", uid) and int(uid[5:]) >> 76 & 15 == 5 for uid in first)
    assert uids("again") == first
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    changed = [
        uids("voxels", intensities(scale=2)),
        uids("text", description="b"),
        uids("grid", affine=source.affine @ np.diag([1, 1, 2, 1])),
        uids("number", series_number=7),
    ]
    assert len({uid for each in [first, *changed] for uid in each}) == 30


def test_a_ct_series(tmp_path, save_series, voxels):
    def change(slice_, k):
        slice_.SOPClassUID, slice_.Modality, slice_.KVP, slice_.AcquisitionNumber = CTImageStorage, "CT", "120", 2

    source = read_volume(save_series(voxels, change=change))
    array = intensities(scale=300, offset=-500)
    write_dicom_derived(array, source, tmp_path / "out", "denoised")
    assert_same_volume(read_volume(tmp_path / "out"), array, source.affine)
    header = headers(tmp_path / "out")[0]
    assert (header.SOPClassUID, header.RescaleType, header.KVP) == (CTImageStorage, "HU", 120)
    assert list(header.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert "ScanningSequence" not in header


def test_what_describes_the_scan_is_kept_and_the_scanner_is_named(tmp_path, save_series, voxels, monkeypatch):
    def change(slice_, k):
        slice_.SpecificCharacterSet = "ISO_IR 100"
        slice_.PatientName, slice_.Manufacturer, slice_.EchoTime = "Müller^Eva", "Scanner", "4.5"
        slice_.ScanningSequence, slice_.SequenceVariant = ["GR", "IR"], "SP"
        slice_.LossyImageCompression, slice_.LossyImageCompressionRatio = "01", "8"
        method = Dataset()
        method.CodeValue, method.CodingSchemeDesignator, method.CodeMeaning = "1", "99HOME", "gekürzt"
        slice_.DeidentificationMethodCodeSequence = [method]

    source = read_volume(save_series(voxels, change=change))
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    write_dicom_derived(intensities(scale=1e-7), source, tmp_path / "out", "Bild", software_version="0.1")
    for header in headers(tmp_path / "out"):
        assert list(header.iterall())  # which converts every value
        assert (header.PatientName, header.EchoTime) == ("Müller^Eva", 4.5)
        assert header.DeidentificationMethodCodeSequence[0].CodeMeaning == "gekürzt"
        assert list(header.ScanningSequence) == ["GR", "IR"]
        assert (header.LossyImageCompression, header.LossyImageCompressionRatio) == ("01", 8)
        (equipment,) = header.ContributingEquipmentSequence
        assert (equipment.Manufacturer, header.SoftwareVersions) == ("Scanner", "0.1")


def test_a_segmentation_can_lie_on_it(tmp_path, source):
    write_dicom_derived(intensities(), source, tmp_path / "out", "denoised")
    labels = {1: Label(1, "anterior", (255, 176, 0))}
    write_dicom_seg((intensities() > 0).astype(int), read_volume(tmp_path / "out"), tmp_path / "seg.dcm", labels)
    assert dcmread(tmp_path / "seg.dcm").StudyInstanceUID == dcmread(source.header[0]).StudyInstanceUID


def test_an_existing_folder_is_kept_unless_overwriting(tmp_path, source):
    write_dicom_derived(intensities(), source, tmp_path / "out", "denoised")
    with pytest.raises(UserError, match="exists already"):
        write_dicom_derived(intensities(), source, tmp_path / "out", "denoised")
    write_dicom_derived(intensities(scale=2), source, tmp_path / "out", "denoised", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["out", "series"]


def test_a_failure_leaves_nothing(tmp_path, source, monkeypatch):
    def fail(self, path, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Dataset, "save_as", fail)
    with pytest.raises(UserError, match="cannot be written"):
        write_dicom_derived(intensities(), source, tmp_path / "out", "denoised")
    assert os.listdir(tmp_path) == ["series"]


SKEWED = np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"array": np.full((7, 6, 5), np.nan)}, "NaN"),
        ({"array": np.ones((4, 5)), "affine": np.eye(4)}, "2-D"),
        ({"affine": SKEWED}, "right angles"),
        ({"affine": np.eye(3)}, r"shape \(3, 3\)"),
        ({"description": "a\nb"}, "plain line"),
        ({"derivation": "a\\b"}, "plain line"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, source, change, fault):
    good = {"array": intensities(), "description": "denoised"}
    with pytest.raises(UserError, match=fault):
        write_dicom_derived(source=source, folder=tmp_path / "out", **(good | change))
    assert os.listdir(tmp_path) == ["series"]


def set_in_one(keyword, value):
    return lambda slice_, k: setattr(slice_, keyword, value) if k == 2 else None


STUDY, FRAME = generate_uid(), generate_uid()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_in_one("StudyInstanceUID", STUDY), "differ in StudyInstanceUID"),
        (set_in_one("FrameOfReferenceUID", FRAME), "differ in FrameOfReferenceUID"),
        (set_in_one("FrameOfReferenceUID", ""), "lack FrameOfReferenceUID"),
        (set_in_one("PatientID", "OTHER-SECRET"), "differ in PatientID"),
        (lambda slice_, k: setattr(slice_, "Modality", "PT"), "neither MR nor CT"),
    ],
)
def test_sources_a_series_cannot_refer_to(tmp_path, save_series, voxels, change, fault):
    source = read_volume(save_series(voxels, change=change))
    with pytest.raises(UserError, match=fault) as caught:
        write_dicom_derived(intensities(), source, tmp_path / "out", "denoised")
    assert "SECRET" not in str(caught.value)
    assert os.listdir(tmp_path) == ["series"]


def test_sources_that_are_gone_or_no_dicom(tmp_path, source, save_nifti, voxels):
    source.header[3].unlink()
    with pytest.raises(UserError, match="files are gone"):
        write_dicom_derived(intensities(), source, tmp_path / "out", "denoised")
    other = read_volume(save_nifti(voxels, np.eye(4)))
    with pytest.raises(UserError, match="needs DICOM images, not nifti"):
        write_dicom_derived(intensities(), other, tmp_path / "out", "denoised")
    with pytest.raises(ValueError, match="does not lie on the grid"):
        write_dicom_derived(intensities((7, 6, 6)), source, tmp_path / "out", "denoised")
