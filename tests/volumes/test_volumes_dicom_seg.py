"""A DICOM SEG lies on the images it was made from."""

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from voxscore.errors import UserError
from voxscore.volumes import Label, read_volume, write_dicom_mr, write_dicom_seg


def decode(path, volume):
    """The label map of a SEG, segment numbers as values, put together from what each frame says."""
    seg = hd.seg.segread(path)
    back = np.zeros(volume.array.shape, dtype=int)
    places = {str(dcmread(p).SOPInstanceUID): k for k, p in enumerate(volume.header)}
    frames = seg.pixel_array if seg.pixel_array.ndim == 3 else seg.pixel_array[None]
    for pixels, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float) * (-1, -1, 1)
        index = np.linalg.inv(volume.affine) @ [*position, 1]
        k = round(index[2])
        np.testing.assert_allclose(index[:3], (0, 0, k), atol=1e-4)
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        if len(volume.header) > 1:
            assert places[source.ReferencedSOPInstanceUID] == k
        back[:, :, k][pixels.T > 0] = number
    return seg, back


def test_round_trip(save_series, voxels, labelmap, labels, tmp_path):
    volume = read_volume(save_series(voxels))
    path = tmp_path / "seg.dcm"
    write_dicom_seg(labelmap, volume, path, labels, algorithm_name="hippocampus", algorithm_version="1.2.3")
    seg, back = decode(path, volume)
    assert np.array_equal(back, np.select([labelmap == 2, labelmap == 5], [1, 2]))
    assert seg.SegmentationType == "BINARY"
    source = dcmread(volume.header[0])
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert seg[keyword].value == source[keyword].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    referenced = {str(i.ReferencedSOPInstanceUID) for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {str(dcmread(p).SOPInstanceUID) for p in volume.header}
    for number, label in enumerate(labels.values(), start=1):
        segment = seg.get_segment_description(number)
        assert segment.segment_label == label.name
        assert segment.segmented_property_type.value == label.code[0]
        assert segment.segmented_property_type.meaning == label.code[2]
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("hippocampus", "1.2.3")
    assert {p.name for p in tmp_path.iterdir()} == {"series", "seg.dcm"}


def test_geometry_is_that_of_the_source(save_series, voxels, labelmap, labels, tmp_path):
    volume = read_volume(save_series(voxels))
    write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", labels)
    seg = dcmread(tmp_path / "seg.dcm")
    source = dcmread(volume.header[0])
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
    assert (seg.Columns, seg.Rows) == volume.array.shape[:2]


def test_a_segmentation_of_synthetic_images_says_so(save_series, voxels, labelmap, labels, tmp_path):
    write_dicom_mr(
        np.abs(voxels).astype(np.float32), read_volume(save_series(voxels)).affine, tmp_path / "made", "s", "x"
    )
    for folder in ("made", "series"):
        volume = read_volume(tmp_path / folder)
        write_dicom_seg(labelmap, volume, tmp_path / f"{folder}.dcm", labels)
        seg, source = dcmread(tmp_path / f"{folder}.dcm"), dcmread(volume.header[0])
        for keyword in ("SyntheticData", "PatientIdentityRemoved", "DeidentificationMethod"):
            assert seg.get(keyword) == source.get(keyword)
        assert (seg.get("SyntheticData") == "YES") == (folder == "made")


def test_sources_without_optional_attributes(save_series, voxels, labelmap, labels, tmp_path):
    def strip(slice_, k):
        for keyword in ("PatientName", "PatientID", "StudyDate", "StudyTime"):
            delattr(slice_, keyword)

    volume = read_volume(save_series(voxels, change=strip))
    write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", labels)
    assert decode(tmp_path / "seg.dcm", volume)[1].max() == 2


def test_names_in_another_character_set(save_series, voxels, labelmap, labels, tmp_path):
    def latin(slice_, k):
        slice_.SpecificCharacterSet, slice_.PatientName = "ISO_IR 100", "Müller^Zoë"

    volume = read_volume(save_series(voxels, change=latin))
    write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", {**labels, 5: Label(5, "海馬", (1, 2, 3))})
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert str(seg.PatientName) == "Müller^Zoë"
    assert seg.get_segment_description(2).segment_label == "海馬"


def test_nothing_found(save_series, voxels, labels, tmp_path, capfd):
    volume = read_volume(save_series(voxels))
    write_dicom_seg(np.zeros(voxels.shape, np.uint8), volume, tmp_path / "seg.dcm", labels)
    seg, back = decode(tmp_path / "seg.dcm", volume)
    assert not back.any()
    assert seg.number_of_segments == 2
    assert capfd.readouterr() == ("", "")


def test_multiframe_source(save_series, voxels, labelmap, labels, tmp_path):
    single = read_volume(save_series(voxels))
    enhanced = hd.legacy.LegacyConvertedEnhancedMRImage(
        [dcmread(path) for path in single.header], generate_uid(), 7, generate_uid(), 1
    )
    enhanced.save_as(tmp_path / "enhanced.dcm")
    volume = read_volume(tmp_path / "enhanced.dcm")
    write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", labels)
    seg, back = decode(tmp_path / "seg.dcm", volume)
    assert np.array_equal(back, np.select([labelmap == 2, labelmap == 5], [1, 2]))
    reference = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == enhanced.SOPInstanceUID


def test_refusals(save_series, save_nifti, voxels, labelmap, labels, oblique, tmp_path):
    out = tmp_path / "seg.dcm"
    volume = read_volume(save_series(voxels))
    with pytest.raises(UserError, match="needs DICOM images"):
        write_dicom_seg(labelmap, read_volume(save_nifti(voxels, oblique)), out, labels)
    with pytest.raises(ValueError, match=r"without a label: \[5\]"):
        write_dicom_seg(labelmap, volume, out, {2: labels[2]})
    with pytest.raises(ValueError, match="is no label map"):
        write_dicom_seg(labelmap[1:], volume, out, labels)
    volume.header[0].unlink()
    with pytest.raises(UserError, match="files are gone"):
        write_dicom_seg(labelmap, volume, out, labels)
    assert not out.exists()


def test_sources_without_a_study(save_series, voxels, labelmap, labels, tmp_path):
    volume = read_volume(save_series(voxels, change=lambda s, k: delattr(s, "StudyInstanceUID")))
    with pytest.raises(UserError, match="headers lack") as caught:
        write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", labels)
    assert "ecret" not in str(caught.value)


def test_existing_output(save_series, voxels, labelmap, labels, tmp_path):
    volume = read_volume(save_series(voxels))
    write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", labels)
    with pytest.raises(UserError, match="exists already"):
        write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", labels)
    write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", labels, overwrite=True)
