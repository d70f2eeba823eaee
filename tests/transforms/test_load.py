"""LoadVolume: the same voxels and affine as the file, none of the header, and the refusals of voxscore.volumes."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Invertd, Orientationd, SaveImaged

from voxscore.transforms import LoadVolume, LoadVolumeD, LoadVolumed, LoadVolumeDict
from voxscore.volumes import read_volume


@pytest.fixture
def file(tmp_path):
    affine = np.array([[-2, 0, 0.5, 9], [0, 3, 0, -7], [0.25, 0, 1.5, 2], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32), affine)
    image.header["descrip"] = b"DOE^JANE"
    nib.save(image, tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz"


def test_voxels_and_affine_pass_the_header_does_not(file):
    loaded = LoadVolume()(file)
    np.testing.assert_array_equal(loaded[0].numpy(), nib.load(file).get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(loaded.affine.numpy(), nib.load(file).affine)
    assert "DOE" not in str(loaded.meta)


def test_path_volume_and_tensor_give_the_same(file):
    a, b = LoadVolume()(str(file)), LoadVolume()(read_volume(file))
    assert torch.equal(a, b)
    assert torch.equal(a.affine, b.affine)
    assert LoadVolume()(a) is a


def test_dictionary_version_leaves_its_input_alone(file):
    assert LoadVolumed is LoadVolumeD is LoadVolumeDict
    data = {"image": file, "other": 1}
    loaded = LoadVolumed("image")(data)
    assert data["image"] is file
    assert torch.equal(loaded["image"], LoadVolume()(file))
    with pytest.raises(KeyError):
        LoadVolumed("absent")(data)
    assert LoadVolumed("absent", allow_missing_keys=True)(data) == data


def test_refusals_reach_the_user(file):
    with pytest.raises(RuntimeError, match="transform") as raised:
        Compose([LoadVolumed("x", label_map=True)])({"x": file})
    assert "holds values that are not whole numbers" in str(raised.value.__cause__)


def test_an_empty_label_map_is_no_fault(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "l.nii.gz")
    assert LoadVolume(label_map=True)(tmp_path / "l.nii.gz").sum() == 0


def test_inverts_and_saves_like_monais_own(file, tmp_path):
    prepare = Compose([LoadVolumed("image"), Orientationd("image", "RAS", labels=None)])
    data = prepare({"image": file})
    data["pred"] = data["image"].clone()
    save = SaveImaged(
        "pred",
        output_dir=tmp_path / "out",
        output_postfix="copy",
        separate_folder=False,
        print_log=False,
        resample=False,
    )
    Compose([Invertd("pred", prepare, "image", nearest_interp=False), save])(data)
    saved = nib.load(tmp_path / "out" / "a_copy.nii.gz")
    np.testing.assert_array_equal(saved.get_fdata(), nib.load(file).get_fdata())
    np.testing.assert_allclose(saved.affine, nib.load(file).affine)


def test_builds_from_a_configuration():
    config = {"load": {"_target_": "voxscore.transforms.LoadVolumed", "keys": ["label"], "label_map": True}}
    assert ConfigParser(config).get_parsed_content("load").load.label_map
