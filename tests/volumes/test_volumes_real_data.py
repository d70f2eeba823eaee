"""Scanner data, where they lie beside the checkout."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from voxscore.errors import UserError
from voxscore.volumes import Label, find_volumes, read_volume, write_dicom_seg, write_volume

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real volumes are not at {DATA}")
SERIES = ("Study1/12-T1post-05670", "Study1/13_HCropVolume", "Study2/14_HCropVolume")


@pytest.mark.parametrize("series", SERIES)
def test_series_and_its_segmentation(series, tmp_path):
    folder = DATA / "dicom" / series
    volume = read_volume(folder)
    assert len(volume.header) == sum(1 for _ in folder.glob("*.dcm")) == volume.array.shape[2]
    labelmap = (volume.array > np.percentile(volume.array, 90)).astype(np.uint8)
    write_dicom_seg(labelmap, volume, tmp_path / "seg.dcm", {1: Label(1, "bright", (255, 0, 0))})
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    back = seg.get_volume(combine_segments=True, allow_missing_positions=True)
    filled = np.flatnonzero(labelmap.any(axis=(0, 1)))
    offset = (volume.affine @ [0, 0, filled[0], 1])[:3] * (-1, -1, 1)
    array, start = back.array, back.affine @ [0, 0, 0, 1]
    if not np.allclose(start[:3], offset, atol=1e-3):
        array, start = array[::-1], back.affine @ [len(array) - 1, 0, 0, 1]
    np.testing.assert_allclose(start[:3], offset, atol=1e-3)
    assert np.array_equal(array.transpose(2, 1, 0), labelmap[:, :, filled[0] : filled[-1] + 1])
    write_volume(labelmap, volume, tmp_path / "seg.nrrd")
    assert np.array_equal(read_volume(tmp_path / "seg.nrrd").affine, volume.affine)


def test_study_with_two_series():
    with pytest.raises(UserError, match="2 DICOM series: number 12"):
        read_volume(DATA / "dicom" / "Study1")
    assert read_volume(DATA / "dicom" / "Study1", "12").array.shape == (512, 512, 22)


def test_nifti_heads_and_crops(tmp_path):
    crops = [
        p for folder in sorted((DATA / "hippocampus").iterdir()) if folder.is_dir() for p in find_volumes(folder)[:2]
    ]
    heads = sorted((DATA / "brain_raw").rglob("*FLAIR.nii.gz"))[:2]
    assert heads
    for path in crops + heads:
        volume = read_volume(path)
        write_volume((volume.array > volume.array.mean()).astype(int), volume, tmp_path / "out.nii.gz", overwrite=True)
        assert np.array_equal(read_volume(tmp_path / "out.nii.gz").affine, volume.affine)
