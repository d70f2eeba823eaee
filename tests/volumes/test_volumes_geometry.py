"""The grid that leaves is the grid that came in."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from voxscore.volumes import read_volume, write_volume

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def itk_image(array, affine):
    """The same image stated to ITK."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_affine_survives_bit_for_bit(affine, voxels, labelmap, labels, tmp_path, source, target):
    first = tmp_path / f"in{source}"
    if source.startswith(".nii"):
        nib.Nifti1Image(voxels, affine).to_filename(first)
    else:
        # Numbers that single precision holds, so that NIfTI can store them; the doubles are tested below.
        single = affine if not target.startswith(".nii") else affine.astype(np.float32).astype(np.float64)
        write_volume(voxels, read_volume(_seed(tmp_path, voxels, single)), first)
    volume = read_volume(first)
    write_volume(labelmap, volume, tmp_path / f"out{target}", labels)
    again = read_volume(tmp_path / f"out{target}")
    assert np.array_equal(again.affine, volume.affine)
    assert np.array_equal(again.array, labelmap)
    assert np.array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=2e-6)


def _seed(tmp_path, voxels, affine):
    """A NIfTI-2 file, which stores doubles."""
    path = tmp_path / "seed.nii"
    nib.Nifti2Image(voxels, affine).to_filename(path)
    return path


@pytest.mark.parametrize("chain", [(".nrrd", ".mha", ".nrrd"), (".mha", ".nrrd", ".mha"), (".nii", ".mha", ".nii")])
def test_doubles_survive_every_chain_of_formats(affine, voxels, tmp_path, chain):
    volume = read_volume(_seed(tmp_path, voxels, affine))
    assert np.array_equal(volume.affine, affine)
    for number, suffix in enumerate(chain):
        if suffix == ".nii" and volume.format != "nifti":
            break  # NIfTI-1 holds single precision only
        path = tmp_path / f"{number}{suffix}"
        write_volume(voxels, volume, path)
        volume = read_volume(path)
        assert np.array_equal(volume.affine, affine)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_double_precision_sources_keep_nifti_within_single_precision(affine, voxels, tmp_path, suffix):
    sitk.WriteImage(itk_image(voxels, affine), tmp_path / f"in{suffix}")
    volume = (
        read_volume(tmp_path / f"in{suffix}") if suffix != ".nii.gz" else read_volume(_seed(tmp_path, voxels, affine))
    )
    write_volume(voxels, volume, tmp_path / "out.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "out.nii.gz").affine, volume.affine, atol=2e-6, rtol=0)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_sees_the_geometry_it_saw_in_the_input(affine, voxels, labelmap, tmp_path, suffix):
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    sitk.WriteImage(itk_image(voxels, affine), source, useCompression=True)
    write_volume(labelmap, read_volume(source), target)
    before, after = sitk.ReadImage(source), sitk.ReadImage(target)
    assert after.GetOrigin() == before.GetOrigin()
    assert after.GetSpacing() == before.GetSpacing()
    assert after.GetDirection() == before.GetDirection()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_voxel_stays_where_itk_puts_it(affine, voxels, tmp_path, suffix):
    if suffix.startswith(".nii") and _sheared(affine):
        pytest.skip("ITK does not write sheared NIfTI")
    image = itk_image(voxels, affine)
    path = tmp_path / f"case{suffix}"
    sitk.WriteImage(image, path)
    volume = read_volume(path)
    for index in [(0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)]:
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        place = (volume.affine @ [*index, 1])[:3]
        np.testing.assert_allclose(place, (-left, -posterior, superior), atol=1e-5)
        assert volume.array[index] == image[index]
    np.testing.assert_allclose(volume.spacing, image.GetSpacing(), rtol=1e-6)


def _sheared(affine):
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(columns.T @ columns, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_itk_reads_what_was_written(oblique, voxels, tmp_path, suffix):
    volume = read_volume(_seed(tmp_path, voxels, oblique))
    path = tmp_path / f"out{suffix}"
    write_volume(voxels, read_volume(_first(tmp_path, voxels, oblique)) if ".nii" in suffix else volume, path)
    image = sitk.ReadImage(path)
    assert np.array_equal(sitk.GetArrayFromImage(image).T, voxels)
    point = np.array(image.TransformIndexToPhysicalPoint((3, 2, 1))) * (-1, -1, 1)
    np.testing.assert_allclose(point, (oblique @ [3, 2, 1, 1])[:3], atol=1e-5)


def _first(tmp_path, voxels, affine):
    path = tmp_path / "first.nii"
    nib.Nifti1Image(voxels, affine).to_filename(path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_probabilities_keep_their_channels(oblique, voxels, save_nifti, tmp_path, suffix):
    volume = read_volume(save_nifti(voxels, oblique))
    probabilities = np.random.default_rng(2).random((*voxels.shape, 3)).astype(np.float32)
    path = tmp_path / f"probabilities{suffix}"
    write_volume(probabilities, volume, path)
    if ".nii" in suffix:
        image = nib.load(path)
        assert np.array_equal(np.asarray(image.dataobj), probabilities)
        assert np.array_equal(image.affine, volume.affine)
    else:
        image = sitk.ReadImage(path)
        assert np.array_equal(np.moveaxis(sitk.GetArrayFromImage(image), 3, 0).T, probabilities)
        point = np.array(image.TransformIndexToPhysicalPoint((3, 2, 1))) * (-1, -1, 1)
        np.testing.assert_allclose(point, (volume.affine @ [3, 2, 1, 1])[:3], atol=1e-9)


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 2), (3, 1), (1, 4)])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_keeps_both_forms_and_their_codes(oblique, voxels, labelmap, tmp_path, qform, sform, image_class):
    image = image_class(voxels, None)
    image.header.set_zooms((0.7, 1.1, 3.3))
    other = oblique.copy()
    other[:3, 3] += 5  # the two forms disagree, as in real files
    image.header.set_qform(other, qform)
    image.header.set_sform(oblique, sform)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4:] = (2.5, 1, 1, 1)
    for field, value in {"descrip": b"Secret^Name", "aux_file": b"Secret", "intent_name": b"Secret"}.items():
        image.header[field] = value
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Secret^Name"))
    path, out = tmp_path / "in.nii", tmp_path / "out.nii"
    path.write_bytes(image_class(voxels, None, image.header).to_bytes())
    write_volume(labelmap, read_volume(path), out)
    before, after = nib.load(path), nib.load(out)
    assert int(after.header["qform_code"]) == qform
    assert int(after.header["sform_code"]) == sform
    assert np.array_equal(after.affine, before.affine)
    assert np.array_equal(after.header.get_qform(), before.header.get_qform())
    assert np.array_equal(after.header.get_sform(), before.header.get_sform())
    for field in ("pixdim", "xyzt_units", "quatern_b", "qoffset_x", "srow_y"):
        assert np.array_equal(after.header[field], before.header[field])
    assert b"Secret" in path.read_bytes()
    assert b"Secret" not in out.read_bytes()


def test_big_endian_nifti(oblique, voxels, labelmap, tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.float32)
    header.set_sform(oblique, 1)
    image = nib.Nifti1Image(voxels, oblique, header)
    assert image.header.endianness == ">"
    image.to_filename(tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    assert np.array_equal(volume.array, voxels)
    write_volume(labelmap, volume, tmp_path / "out.nii")
    assert np.array_equal(nib.load(tmp_path / "out.nii").affine, volume.affine)


def test_intensity_scaling_is_applied(oblique, tmp_path, voxels):
    image = nib.Nifti1Image(voxels.astype(np.int16), oblique)
    image.header.set_slope_inter(0.5, 3)
    image.to_filename(tmp_path / "in.nii")
    np.testing.assert_allclose(
        read_volume(tmp_path / "in.nii").array, nib.load(tmp_path / "in.nii").get_fdata(), rtol=1e-3
    )


def test_a_trailing_axis_of_length_one_is_dropped(oblique, voxels, save_nifti, tmp_path):
    path = save_nifti(voxels[..., None], oblique)
    volume = read_volume(path)
    assert np.array_equal(volume.array, voxels)
    write_volume(voxels, volume, tmp_path / "out.nii")
    out = nib.load(tmp_path / "out.nii")
    assert out.shape == voxels.shape
    assert np.array_equal(out.affine, nib.load(path).affine)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_pixel_type_itk_writes(voxels, tmp_path, dtype, suffix, compressed):
    array = (voxels % 120 - (0 if dtype[0] == "u" else 60)).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(array.T)), tmp_path / f"a{suffix}", compressed)
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}").array, array)


def test_big_endian_metaimage_with_old_names(voxels, tmp_path):
    header = "NDims = 3\r\nDimSize = 7 6 5\nElementByteOrderMSB = True\nOrigin = 1 2 3\nElementSize = 1 2 4\n"
    header += "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + voxels.astype(">f4").tobytes(order="F"))
    volume = read_volume(tmp_path / "a.mha")
    assert np.array_equal(volume.array, voxels)
    assert np.array_equal(volume.affine @ [1, 1, 1, 1], [-2, -4, 7, 1])
