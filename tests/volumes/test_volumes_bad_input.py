"""Every bad file is one sentence: which file, what is wrong, what to do."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from voxscore.errors import UserError
from voxscore.volumes import find_volumes, read_volume

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
GOOD = np.arange(8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10)


def nifti(array, affine=AFFINE, **fields):
    image = nib.Nifti1Image(array, affine)
    for field, value in fields.items():
        image.header[field] = value
    return image.to_bytes()


def raw_header(**fields):
    """A good NIfTI file with header fields changed behind nibabel's back."""
    content = nifti(GOOD)
    header = nib.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    return header.binaryblock + content[348:]


def itk(array, suffix, compressed, vector=False):
    def make(folder):
        path = folder / f"source{suffix}"
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), path, useCompression=compressed)
        content = path.read_bytes()
        path.unlink()
        return content

    return make


def cut(make, count):
    return lambda folder: make(folder)[:-count]


def flip(make, position):
    def damage(folder):
        content = bytearray(make(folder))
        content[position] ^= 0xFF
        return bytes(content)

    return damage


def replace(make, old, new):
    return lambda folder: make(folder).replace(old, new, 1)


def with_voxel(value, dtype=np.float32):
    array = GOOD.astype(dtype)
    array[1, 2, 3] = array[4, 4, 4] = value
    return array


RGB = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
ZIPPED = gzip.compress(nifti(GOOD))
NAN_SROW = np.array([1, 0, np.nan, 0], dtype=np.float32)
NRRD, MHA = itk(GOOD, ".nrrd", True), itk(GOOD, ".mha", True)
BAD = {
    "empty.nii.gz": (b"", "empty file"),
    "empty.nrrd": (b"", "empty file"),
    "text.nii.gz": (b"these are not voxels", "not gzip-compressed"),
    "text.nii": (b"these are not voxels" * 50, "not a readable NIfTI"),
    "text.nrrd": (b"these are not voxels", "not a readable NRRD"),
    "text.mha": (b"these are not voxels", "not a readable MetaImage"),
    "zipped-text.nii.gz": (gzip.compress(b"these are not voxels"), "not a readable NIfTI"),
    "truncated.nii.gz": (ZIPPED[:-500], "cut short"),
    "no-checksum.nii.gz": (ZIPPED[:-8], "cut short"),
    "bad-checksum.nii.gz": (ZIPPED[:-8] + bytes(4) + ZIPPED[-4:], "damaged"),
    "bad-middle.nii.gz": (flip(lambda _: ZIPPED, 700), "damaged"),
    "short.nii": (nifti(GOOD)[:-100], "not a readable NIfTI"),
    "short-zipped.nii.gz": (gzip.compress(nifti(GOOD)[:-100]), "not a readable NIfTI"),
    "header-only.nii": (nifti(GOOD)[:348], "not a readable NIfTI"),
    "huge.nii": (raw_header(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "not a readable NIfTI"),
    "unknown-type.nii": (raw_header(datatype=77), "not a readable NIfTI"),
    "photo.png": (b"\x89PNG", "does not read files of this kind"),
    "scan.img": (b"abc", "does not read files of this kind"),
    "no-suffix": (b"abc", "does not read files of this kind"),
    "flat.nii": (nifti(GOOD[..., 0]), "2-D image"),
    "flat1.nii": (nifti(GOOD[..., :1]), "2-D image"),
    "flat.mha": (itk(GOOD[0], ".mha", False), "2-D image"),
    "flat.nrrd": (itk(GOOD[0], ".nrrd", False), "2-D image"),
    "series.nii": (nifti(np.stack([GOOD, GOOD], 3)), "holds 2 volumes"),
    "series.nrrd": (itk(np.stack([GOOD, GOOD]), ".nrrd", False), "holds 2 volumes"),
    "series.mha": (itk(np.stack([GOOD, GOOD]), ".mha", True), "holds 2 volumes"),
    "vectors.nii": (nifti(np.zeros((4, 5, 6, 2, 3), np.float32)), "5-D"),
    "vectors.nrrd": (itk(np.stack([GOOD] * 3, 3), ".nrrd", False, True), "3 values per voxel"),
    "vectors.mha": (itk(np.stack([GOOD] * 3, 3), ".mha", False, True), "3 values per voxel"),
    "no-voxels.nii": (nifti(GOOD[:0]), "no voxels"),
    "nan.nii.gz": (gzip.compress(nifti(with_voxel(np.nan))), "2 of 720 voxels are NaN"),
    "inf.nii": (nifti(with_voxel(-np.inf)), "2 of 720 voxels are NaN or infinite"),
    "overflow.nii": (nifti(with_voxel(1e300, np.float64)), "2 of 720 voxels are NaN or infinite"),
    "nan.nrrd": (itk(with_voxel(np.nan), ".nrrd", True), "2 of 720 voxels are NaN"),
    "nan.mha": (itk(with_voxel(np.nan), ".mha", True), "2 of 720 voxels are NaN"),
    "constant.nii": (nifti(np.full((4, 5, 6), 7, np.int16)), "same value"),
    "constant.mha": (itk(np.full((4, 5, 6), 7, np.int16), ".mha", True), "same value"),
    "complex.nii": (nifti(GOOD.astype(np.complex64)), "complex"),
    "complex.nrrd": (itk(GOOD.astype(np.complex64), ".nrrd", True), "complex"),
    "rgb.nii": (nifti(RGB), "colour"),
    "singular.nii": (raw_header(sform_code=1, srow_x=[1, 0, 0, 0], srow_y=[1, 0, 0, 0]), "singular"),
    "zero-sform.nii": (raw_header(sform_code=1, srow_z=[0, 0, 0, 0]), "singular"),
    "nan-affine.nii": (raw_header(sform_code=1, srow_x=NAN_SROW), "not finite"),
    "truncated.nrrd": (cut(NRRD, 200), "not a readable NRRD"),
    "bad-checksum.nrrd": (flip(NRRD, -6), "not a readable NRRD"),
    "short.nrrd": (cut(itk(GOOD, ".nrrd", False), 4), "not a readable NRRD"),
    "truncated.mha": (cut(MHA, 200), "cut short"),
    "no-checksum.mha": (cut(MHA, 4), "cut short"),
    "bad-checksum.mha": (flip(MHA, -2), "not a readable MetaImage"),
    "short.mha": (cut(itk(GOOD, ".mha", False), 4), "4 bytes of voxels are missing"),
    "header-cut.mha": (cut(itk(GOOD, ".mha", False), 4 * GOOD.size + 30), "not a readable MetaImage"),
    "elsewhere.mha": (replace(MHA, b"LOCAL", b"other.raw"), "in another file"),
    "no-size.mha": (replace(MHA, b"DimSize", b"DimSzie"), "not a readable MetaImage"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(tmp_path, name, capfd):
    content, fault = BAD[name]
    path = tmp_path / "case" / name
    path.parent.mkdir()
    path.write_bytes(content(tmp_path) if callable(content) else content)
    with pytest.raises(UserError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert caught.value.subject == str(path)
    assert fault in message
    assert caught.value.remedy
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert os.listdir(path.parent) == [name]


def test_the_good_ones_are_good(tmp_path):
    for name, content in {"a.nii": nifti(GOOD), "a.nii.gz": ZIPPED}.items():
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(read_volume(tmp_path / name).array, GOOD)
    for name, make in {"a.nrrd": NRRD, "a.mha": MHA}.items():
        (tmp_path / name).write_bytes(make(tmp_path))
        assert np.array_equal(read_volume(tmp_path / name).array, GOOD.T)


def test_header_repairs_are_not_chattered_about(tmp_path, capfd, caplog):
    (tmp_path / "a.nii").write_bytes(raw_header(pixdim=[0, 1, 2, 3, 1, 1, 1, 1]))
    read_volume(tmp_path / "a.nii")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("find", [find_volumes, read_volume])
def test_missing(tmp_path, find):
    with pytest.raises(UserError, match="no such file"):
        find(tmp_path / "absent.nii.gz")


def test_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(GOOD))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match="Permission denied") as caught:
        read_volume(path)
    assert caught.value.subject == str(path)


def test_folder_without_volumes(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for find in (find_volumes, read_volume):
        with pytest.raises(UserError, match=r"holds no (volumes|DICOM)"):
            find(tmp_path)


def test_folder_of_volumes_is_sorted(tmp_path):
    for name in ("b.nii.gz", "a.nrrd", "c.mha", "notes.txt", ".hidden.nii"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub.nii").mkdir()
    assert find_volumes(tmp_path) == [tmp_path / "a.nrrd", tmp_path / "b.nii.gz", tmp_path / "c.mha"]
    assert find_volumes(tmp_path / "a.nrrd") == [tmp_path / "a.nrrd"]


def test_series_of_a_nifti(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(GOOD))
    with pytest.raises(UserError, match="is not DICOM"):
        read_volume(tmp_path / "a.nii", series="3")
