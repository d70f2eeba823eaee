"""A synthetic series keeps its grid and intensities, says what it is, and is whole or absent."""

import errno
import os
import re

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from voxscore.errors import UserError
from voxscore.volumes import Label, read_volume, write_dicom_mr, write_dicom_seg

# PS3.3 A.4.3, MR Image IOD: what its mandatory modules require with a value, and what may be empty.
TYPE_1 = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("ImageType", "ScanningSequence", "SequenceVariant", "SamplesPerPixel", "PhotometricInterpretation"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SpecificCharacterSet"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "WindowCenter", "WindowWidth"),
)
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyID", "SeriesNumber", "PatientPosition", "Laterality", "Manufacturer"),
    *("PositionReferenceIndicator", "InstanceNumber", "SliceThickness", "ScanOptions", "MRAcquisitionType"),
    *("RepetitionTime", "EchoTime", "EchoTrainLength"),
)


def intensities(shape=(7, 6, 5), scale=1.0, offset=0.0):
    return (offset + scale * np.random.default_rng(0).normal(size=shape).cumsum(0)).astype(np.float32)


def headers(folder):
    return [dcmread(path) for path in sorted(folder.iterdir())]


def uids(dataset):
    """Every new UID of a file, by keyword."""
    return {e.keyword: str(e.value) for e in dataset.iterall() if e.VR == "UI" and e.keyword != "SOPClassUID"}


def assert_same_volume(volume, array, affine):
    step = np.ptp(array) / 65535
    rounding = np.abs(array).max() * np.finfo(np.float32).eps  # of the reader's float32
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=1e-6)
    assert np.abs(volume.array.astype(float) - array).max() <= 0.5 * step * (1 + 1e-4) + rounding


def test_grid_and_intensities_come_back(tmp_path, affine):
    array = intensities()
    write_dicom_mr(array, affine, tmp_path / "case", "seed 1", "hippocampus")
    if np.linalg.det(affine[:3, :3]) < 0:  # slices are counted along the normal
        affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 4], [0, 0, 0, 1]])
        array = array[:, :, ::-1]
    assert_same_volume(read_volume(tmp_path / "case"), array, affine)


def test_identity_affine(tmp_path):
    write_dicom_mr(intensities(), np.eye(4), tmp_path / "case", "seed 1", "hippocampus")
    assert np.array_equal(read_volume(tmp_path / "case").affine, np.eye(4))


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-6, 0), (1e6, -3e7), (300, 1000), (1e-30, 1e-30)])
def test_any_scale_of_intensities_survives(tmp_path, oblique, scale, offset):
    array = intensities(scale=scale, offset=offset)
    write_dicom_mr(array, oblique, tmp_path / "case", "seed 1", "hippocampus")
    assert_same_volume(read_volume(tmp_path / "case"), array, oblique)


def test_the_full_range_of_sixteen_bits_is_used(tmp_path, oblique):
    write_dicom_mr(intensities(), oblique, tmp_path / "case", "seed 1", "hippocampus")
    stored = np.stack([header.pixel_array for header in headers(tmp_path / "case")])
    assert (stored.min(), stored.max()) == (0, 65535)


def test_itk_reads_the_same_volume(tmp_path, oblique):
    array = intensities()
    write_dicom_mr(array, oblique, tmp_path / "case", "seed 1", "hippocampus")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "case")))
    image = reader.Execute()
    np.testing.assert_allclose(sitk.GetArrayFromImage(image).transpose(2, 1, 0), array, atol=np.ptp(array) / 65535)
    for index in [(0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)]:
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose((oblique @ [*index, 1])[:3], place, atol=1e-5)


def test_slices_are_numbered_along_the_normal(tmp_path, oblique):
    write_dicom_mr(intensities(), oblique @ np.diag([1, 1, -1, 1]), tmp_path / "case", "seed 1", "hippocampus")
    series = headers(tmp_path / "case")
    normal = np.cross(*np.array(series[0].ImageOrientationPatient, float).reshape(2, 3))
    heights = [np.array(header.ImagePositionPatient, float) @ normal for header in series]
    np.testing.assert_allclose(np.diff(heights), 3.3)
    assert [header.InstanceNumber for header in series] == [1, 2, 3, 4, 5]
    assert {float(header.SliceThickness) for header in series} == {3.3}
    assert {float(header.SpacingBetweenSlices) for header in series} == {3.3}


def test_the_iod_is_complete(tmp_path, oblique):
    write_dicom_mr(intensities(), oblique, tmp_path / "case", "seed 1", "hippocampus")
    for header in headers(tmp_path / "case"):
        assert [keyword for keyword in TYPE_1 if keyword not in header or header[keyword].is_empty] == []
        assert [keyword for keyword in TYPE_2 if keyword not in header] == []
        assert header.SOPClassUID == header.file_meta.MediaStorageSOPClassUID == MRImageStorage
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        assert header.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert not any(element.tag.is_private for element in header.iterall())


def test_files_are_strictly_valid(tmp_path, oblique, monkeypatch, caplog):
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    write_dicom_mr(intensities(scale=1e-7), oblique, tmp_path / "case", "seed 1", "Hippokämpus")
    for header in headers(tmp_path / "case"):
        assert list(header.iterall())  # which converts every value
        assert header.SeriesDescription == "Synthetic: Hippokämpus"
    assert caplog.records == []


def test_every_file_says_that_it_is_synthetic(tmp_path, oblique):
    write_dicom_mr(intensities(), oblique, tmp_path / "case", "seed 7", "hippocampus", number=7, software_version="0.1")
    for header in headers(tmp_path / "case"):
        assert header.SyntheticData == header.PatientIdentityRemoved == "YES"
        assert header.ContentQualification == "RESEARCH"
        assert list(header.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
        assert header.PatientName == "Synthetic^0007"
        assert header.PatientID.startswith("SYNTHETIC-0007-")
        assert header.DeidentificationMethod == "Synthetic data made by voxscore; no patient existed"
        for keyword in ("SeriesDescription", "StudyDescription", "ImageComments", "ManufacturerModelName"):
            assert "synthetic" in header[keyword].value.lower()
        equipment = header.ContributingEquipmentSequence[0]
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Synthesizing Equipment"
        assert header.Manufacturer == equipment.Manufacturer == "voxscore"
        assert header.SoftwareVersions == equipment.SoftwareVersions == "0.1"


def test_there_is_no_date(tmp_path, oblique):
    write_dicom_mr(intensities(), oblique, tmp_path / "case", "seed 1", "hippocampus")
    for header in headers(tmp_path / "case"):
        assert [e.keyword for e in header.iterall() if e.VR in ("DA", "TM", "DT") and not e.is_empty] == []


def test_the_text_decides_the_uids_and_nothing_else_does(tmp_path, oblique):
    write_dicom_mr(intensities(), oblique, tmp_path / "first", "seed 1", "hippocampus")
    write_dicom_mr(intensities(), oblique, tmp_path / "again", "seed 1", "hippocampus")
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    write_dicom_mr(intensities(scale=2), np.eye(4), tmp_path / "else", "seed 1", "head", number=2)
    write_dicom_mr(intensities(), oblique, tmp_path / "other", "seed 2", "hippocampus")
    first, same, other = ([uids(h) for h in headers(tmp_path / name)] for name in ("first", "else", "other"))
    assert first == same
    assert {uid for each in first for uid in each.values()}.isdisjoint(uid for each in other for uid in each.values())


def test_uids_are_distinct_and_derived_from_uuids(tmp_path, oblique):
    write_dicom_mr(intensities(), oblique, tmp_path / "case", "seed 1", "hippocampus")
    found = [uids(header) for header in headers(tmp_path / "case")]
    shared = {each[k] for each in found for k in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    instances = {each["SOPInstanceUID"] for each in found}
    assert len(shared) == 3
    assert len(instances) == 5
    assert shared.isdisjoint(instances)
    assert {uid for each in found for uid in each.values()} == shared | instances
    for uid in shared | instances:
        assert re.fullmatch(r"2\.25\.[1-9]\d*", uid)
        assert len(uid) <= 64
        number = int(uid[5:])
        assert number < 2**128
        assert number >> 76 & 15 == 5  # the version of the UUID
        assert number >> 62 & 3 == 2  # and its variant


def test_a_segmentation_can_lie_on_it(tmp_path, oblique):
    array = intensities()
    write_dicom_mr(array, oblique, tmp_path / "case", "seed 1", "hippocampus")
    labels = {1: Label(1, "anterior", (255, 176, 0))}
    write_dicom_seg((array > 0).astype(int), read_volume(tmp_path / "case"), tmp_path / "seg.dcm", labels)
    source, seg = headers(tmp_path / "case")[0], dcmread(tmp_path / "seg.dcm")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert seg[keyword].value == source[keyword].value


def test_the_window_spans_the_bulk_of_the_intensities(tmp_path, oblique):
    array = intensities(scale=0.01)
    write_dicom_mr(array, oblique, tmp_path / "case", "seed 1", "hippocampus")
    header = headers(tmp_path / "case")[0]
    window = float(header.WindowCenter) + float(header.WindowWidth) * np.array([-0.5, 0.5])
    np.testing.assert_allclose(window, np.percentile(array, [0.5, 99.5]), rtol=1e-5)
    assert header.VOILUTFunction == "LINEAR_EXACT"  # LINEAR forbids a width below one


def test_a_volume_of_one_bright_voxel_has_a_window(tmp_path, oblique):
    array = np.zeros((10, 10, 10))
    array[5, 5, 5] = 3
    write_dicom_mr(array, oblique, tmp_path / "case", "seed 1", "hippocampus")
    assert float(headers(tmp_path / "case")[0].WindowWidth) == 3


def test_long_descriptions_are_cut_in_the_field_but_not_in_the_comment(tmp_path, oblique):
    text = "hippocampus " * 8 + "end"
    write_dicom_mr(intensities(), oblique, tmp_path / "case", "seed 1", text)
    header = headers(tmp_path / "case")[0]
    assert len(header.SeriesDescription) <= 64
    assert text in header.ImageComments


def test_an_existing_folder_is_kept_unless_overwriting(tmp_path, oblique):
    folder = tmp_path / "new" / "case"
    write_dicom_mr(intensities((7, 6, 9)), oblique, folder, "seed 1", "hippocampus")
    with pytest.raises(UserError, match="exists already"):
        write_dicom_mr(intensities(), oblique, folder, "seed 2", "hippocampus")
    assert len(os.listdir(folder)) == 9
    write_dicom_mr(intensities(), oblique, folder, "seed 2", "hippocampus", overwrite=True)
    assert len(os.listdir(folder)) == 5
    assert os.listdir(folder.parent) == ["case"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_series_is_never_replaced(tmp_path, oblique, overwrite):
    folder, file = tmp_path / "folder", tmp_path / "file"
    (folder / "work").mkdir(parents=True)
    file.write_text("mine")
    for place in (folder, file):
        with pytest.raises(UserError) as caught:
            write_dicom_mr(intensities(), oblique, place, "seed 1", "hippocampus", overwrite)
        assert caught.value.subject == str(place)
    assert (folder / "work").is_dir()
    assert file.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, oblique, monkeypatch, error, before):
    folder = tmp_path / "case"
    if before:
        write_dicom_mr(intensities(), oblique, folder, "seed 1", "hippocampus")
    kept = [path.read_bytes() for path in sorted(folder.iterdir())] if before else None
    save = Dataset.save_as

    def fail_at_the_third(self, path, **options):
        if self.InstanceNumber == 3:
            raise error
        save(self, path, **options)

    monkeypatch.setattr(Dataset, "save_as", fail_at_the_third)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        write_dicom_mr(intensities(), oblique, folder, "seed 2", "hippocampus", overwrite=True)
    assert os.listdir(tmp_path) == (["case"] if before else [])
    assert kept is None or kept == [path.read_bytes() for path in sorted(folder.iterdir())]


def test_a_failed_exchange_puts_the_old_series_back(tmp_path, oblique, monkeypatch):
    folder = tmp_path / "case"
    write_dicom_mr(intensities(), oblique, folder, "seed 1", "hippocampus")
    kept = [path.read_bytes() for path in sorted(folder.iterdir())]
    rename, calls = os.rename, []

    def fail_once(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(UserError, match="cannot be written"):
        write_dicom_mr(intensities(), oblique, folder, "seed 2", "hippocampus", overwrite=True)
    assert os.listdir(tmp_path) == ["case"]
    assert kept == [path.read_bytes() for path in sorted(folder.iterdir())]


SKEWED = np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"array": np.ones((4, 5))}, "2-D"),
        ({"array": np.ones((4, 5, 1))}, "2-D"),
        ({"array": np.full((4, 5, 6), np.nan)}, "NaN"),
        ({"affine": np.diag([1, 1, 0, 1])}, "singular"),
        ({"affine": np.eye(3)}, r"shape \(3, 3\)"),
        ({"affine": SKEWED}, "right angles"),
        ({"seed_text": ""}, "no text"),
        ({"description": " "}, "plain line"),
        ({"description": "a\nb"}, "plain line"),
        ({"software_version": "a\\b"}, "plain line"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, change, fault):
    good = {"array": intensities(), "affine": np.eye(4), "seed_text": "seed 1", "description": "hippocampus"}
    with pytest.raises(UserError, match=fault) as caught:
        write_dicom_mr(folder=tmp_path / "case", **(good | change))
    assert caught.value.subject == str(tmp_path / "case")
    assert os.listdir(tmp_path) == []
