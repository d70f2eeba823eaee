"""Rebuilt NIfTI headers: voxels and geometry as they were, nothing else of the old header, damaged files refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension

from voxscore.deidentify.nifti import rebuilt_nifti
from voxscore.errors import UserError

NAME = b"DOE^JANE"
# Text, unused numbers and what lies beyond the header, in NIfTI-1 and NIfTI-2.
PLACES = ([4, 14, 56, 148, 228, 328, 348, 356, 400, 500], [80, 96, 240, 300, 508, 548])
TEXT = ("data_type", "db_name", "descrip", "aux_file", "intent_name")


def planted(image_class=nib.Nifti1Image, dtype=np.int16, shape=(4, 5, 6), order="<"):
    """A file with a name in every field of free text, in unused numbers and in three extensions."""
    array = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    affine = np.array([[-2, 0, 0.5, 9], [0, 3, 0, -7], [0.25, 0, 1.5, 2], [0, 0, 0, 1.0]])
    image = image_class(array, affine, image_class.header_class(endianness=order), dtype=dtype)
    header = image.header
    header.set_sform(affine, 2)
    header.set_qform(affine, 1)
    header.set_xyzt_units("mm", "sec")
    for field in TEXT:
        if field in header.structarr.dtype.names:
            header[field] = NAME
    header["intent_p1"] = np.frombuffer(NAME[:4], "<f4")[0]
    for code in (2, 6, 4):
        header.extensions.append(Nifti1Extension(code, NAME + b" 1950-01-02 " + b"x" * code))
    return image.to_bytes()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.complex64])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_and_geometry_stay(image_class, dtype, order, tmp_path):
    content = planted(image_class, dtype, (3, 4, 5, 2), order)
    assert content.count(NAME) >= 5
    rebuilt = rebuilt_nifti(content, tmp_path / "a.nii")
    assert b"DOE" not in rebuilt
    old, new = image_class.from_bytes(content), image_class.from_bytes(rebuilt)
    np.testing.assert_array_equal(np.asarray(new.dataobj), np.asarray(old.dataobj))
    for field in ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "srow_x", "xyzt_units"):
        np.testing.assert_array_equal(new.header[field], old.header[field])
    np.testing.assert_array_equal(new.affine, old.affine)
    assert new.get_data_dtype() == old.get_data_dtype()
    assert len(new.header.extensions) == 0
    assert new.header["intent_p1"] == 0
    assert len(rebuilt) == image_class.header_class.sizeof_hdr + 4 + np.asarray(old.dataobj).nbytes


def test_scaling_stays(tmp_path):
    image = nib.Nifti1Image(np.linspace(-3, 40, 60).reshape(3, 4, 5), np.eye(4))
    image.set_data_dtype(np.int16)
    content = image.to_bytes()
    new = nib.Nifti1Image.from_bytes(rebuilt_nifti(content, tmp_path / "a.nii"))
    np.testing.assert_array_equal(new.get_fdata(), nib.Nifti1Image.from_bytes(content).get_fdata())
    assert float(new.header["scl_slope"]) not in (0.0, 1.0)


def test_compressed_streams_carry_no_name_or_time(tmp_path):
    path = tmp_path / "DOE_JANE.nii.gz"
    with open(path, "wb") as raw, gzip.GzipFile("DOE_JANE.nii", "wb", fileobj=raw) as stream:
        stream.write(planted())
    rebuilt = rebuilt_nifti(path.read_bytes(), path)
    assert rebuilt[3] == 0  # no optional fields
    assert rebuilt[4:8] == bytes(4)
    assert gzip.decompress(rebuilt) == rebuilt_nifti(planted(), tmp_path / "a.nii")


def test_twice_is_once(tmp_path):
    once = rebuilt_nifti(planted(), tmp_path / "a.nii")
    assert rebuilt_nifti(once, tmp_path / "a.nii") == once


def altered(**fields):
    content = planted()
    header = nib.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    return header.binaryblock + content[348:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not NIfTI" * 100,
        planted()[:-1],
        planted() + NAME,
        altered(vox_offset=100),
        altered(vox_offset=352),
        altered(vox_offset=np.nan),
        altered(srow_x=np.nan),
        altered(srow_x=np.frombuffer(b"SMITHSMITHSMITHS", "<f4")),
        altered(datatype=7),
        altered(bitpix=8),
        altered(dim=[0, 4, 5, 6, 1, 1, 1, 1]),
        altered(dim=[30000, 4, 5, 6, 1, 1, 1, 1]),
        altered(dim=[3, -4, 5, 6, 1, 1, 1, 1]),
        altered(dim=[3, 4, 5, 5, 1, 1, 1, 1]),
        altered(pixdim=0),
        altered(magic=b"ni1"),
    ],
)
def test_what_does_not_add_up_is_refused(content, tmp_path):
    with pytest.raises(UserError) as caught:
        rebuilt_nifti(content, tmp_path / "a.nii")
    assert "DOE" not in str(caught.value)
    with pytest.raises(UserError, match=r"gzip|no NIfTI header"):
        rebuilt_nifti(content, tmp_path / "a.nii.gz")


def test_damaged_files_crash_nothing_and_leak_nothing(tmp_path):
    rng = np.random.default_rng(5)
    kept = 0
    for k in range(300):
        content = bytearray(planted([nib.Nifti1Image, nib.Nifti2Image][k % 2], [np.int16, np.float32][k // 2 % 2]))
        kind = k % 3
        if kind == 0:  # bytes of the header and the extensions' lengths
            for position in rng.integers(0, 560, rng.integers(1, 4)):
                content[position] = rng.integers(256)
        elif kind == 1:  # a piece missing
            start = rng.integers(0, len(content))
            del content[start : start + rng.integers(1, 200)]
        else:  # a name in fields of text, in unused numbers or beyond the header
            start = rng.choice(PLACES[k % 2])
            content[start : start + len(NAME)] = NAME
        try:
            rebuilt = rebuilt_nifti(bytes(content), tmp_path / "a.nii")
        except UserError:
            continue
        kept += 1
        header = (nib.Nifti1Header, nib.Nifti2Header)[rebuilt[0] == 540 % 256 and rebuilt[1] == 540 // 256].sizeof_hdr
        assert NAME not in rebuilt[: header + 4]
    assert kept > 50
