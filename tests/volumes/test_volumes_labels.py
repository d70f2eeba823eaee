"""Names and colours of label maps, where each format keeps them."""

from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from voxscore.volumes import Label, read_volume, write_volume


@pytest.fixture
def volume(save_nifti, voxels, oblique):
    return read_volume(save_nifti(voxels, oblique, "scan.nii.gz"))


def test_nifti_label_table(volume, labelmap, labels, tmp_path):
    write_volume(labelmap, volume, tmp_path / "out.nii.gz", labels)
    image = nib.load(tmp_path / "out.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_intent()[0] == "label"
    (extension,) = image.header.extensions
    assert extension.get_code() == 30
    root = ElementTree.fromstring(extension.content.rstrip(b"\0"))
    table = {int(e.get("Key")): e for e in root.iter("Label")}
    assert {value: e.text for value, e in table.items()} == {v: label.name for v, label in labels.items()}
    for value, label in labels.items():
        channels = [round(float(table[value].get(c)) * 255) for c in ("Red", "Green", "Blue")]
        assert tuple(channels) == label.color


@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd", ".mha"])
def test_segment_keys(volume, labelmap, labels, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_volume(labelmap, volume, path, labels)
    image = sitk.ReadImage(path)
    assert image.GetPixelID() == sitk.sitkUInt8
    for number, (value, label) in enumerate(labels.items()):
        key = f"Segment{number}_"
        assert image.GetMetaData(key + "Name") == label.name
        assert int(image.GetMetaData(key + "LabelValue")) == value
        assert image.GetMetaData(key + "ID") == f"Segment_{value}"
        assert image.GetMetaData(key + "Layer") == "0"
        color = [round(float(c) * 255) for c in image.GetMetaData(key + "Color").split()]
        assert tuple(color) == label.color
        x0, x1, y0, y1, z0, z1 = map(int, image.GetMetaData(key + "Extent").split())
        inside = labelmap[x0 : x1 + 1, y0 : y1 + 1, z0 : z1 + 1] == value
        assert inside.sum() == (labelmap == value).sum()
        assert all(inside.any(axis=tuple({0, 1, 2} - {a}))[[0, -1]].all() for a in range(3))


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize(("top", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_label_maps_take_the_smallest_type(volume, labelmap, tmp_path, suffix, top, dtype):
    write_volume(np.where(labelmap == 5, top, labelmap), volume, tmp_path / f"out{suffix}")
    image = nib.load(tmp_path / "out.nii").get_data_dtype() if suffix == ".nii" else None
    if image is None:
        image = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / f"out{suffix}")).dtype
    assert image == dtype


def test_equal_content_gives_equal_bytes(volume, labelmap, labels, tmp_path):
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        write_volume(labelmap, volume, tmp_path / f"a{suffix}", labels)
        write_volume(labelmap, volume, tmp_path / f"b{suffix}", labels)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("array", ["negative", "too large", "complex", "other grid"])
def test_arrays_that_are_no_result_are_refused(volume, labelmap, tmp_path, array):
    wrong = {
        "negative": labelmap - 1,
        "too large": labelmap + 65535,
        "complex": labelmap * 1j,
        "other grid": labelmap[1:],
    }[array]
    with pytest.raises(ValueError, match=r"label values lie|can be written|does not lie on the grid"):
        write_volume(wrong, volume, tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize(
    "fields", [(-1, "a", (0, 0, 0)), (1, "", (0, 0, 0)), (1, "a\nb", (0, 0, 0)), (1, "a", (0, 0, 256))]
)
def test_labels_are_checked(fields):
    with pytest.raises(ValueError, match=r"label value|label name|colour"):
        Label(*fields)


def test_labels_are_keyed_by_value(volume, labelmap, tmp_path):
    with pytest.raises(ValueError, match="keyed by their value"):
        write_volume(labelmap, volume, tmp_path / "out.nii.gz", {1: Label(2, "a", (0, 0, 0))})
