"""ScrubMeta: nothing of a header or a path in what MONAI carries on, caches and saves; geometry untouched."""

import io

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImage, LoadImaged, Orientationd, SaveImaged

from voxscore.errors import UserError
from voxscore.transforms import ScrubMeta, ScrubMetaD, ScrubMetad, ScrubMetaDict

# MONAI's loader tries all of its readers on construction and warns of one whose library is not there.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


@pytest.fixture
def file(tmp_path):
    affine = np.array([[-2, 0, 0.5, 9], [0, 3, 0, -7], [0.25, 0, 1.5, 2], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32), affine)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = b"DOE^JANE"
    (tmp_path / "DOE^JANE").mkdir()
    nib.save(image, tmp_path / "DOE^JANE" / "DOE^JANE.nii.gz")
    return tmp_path / "DOE^JANE" / "DOE^JANE.nii.gz"


@pytest.fixture
def key(tmp_path):
    (tmp_path / "key").write_text("0123456789abcdef" * 2)
    return tmp_path / "key"


def saved(tensor):
    stream = io.BytesIO()
    torch.save(tensor, stream)
    return stream.getvalue()


def test_no_name_is_left(file, key):
    image = LoadImage(ensure_channel_first=True)(file)
    assert b"DOE" in saved(image)
    for scrub in (ScrubMeta(), ScrubMeta(key)):
        clean = scrub(image)
        assert b"DOE" not in saved(clean)
        assert torch.equal(clean, image)
        torch.testing.assert_close(clean.affine, image.affine)
        torch.testing.assert_close(clean.meta["original_affine"], image.meta["original_affine"])
    assert b"DOE" in saved(image), "the input keeps its own"


def test_no_name_is_left_of_dicom(save_series):
    folder = save_series(np.random.default_rng(0).integers(0, 99, (4, 5, 3)), folder="Secret")
    image = LoadImage(reader="PydicomReader", prune_metadata=False, ensure_channel_first=True)(folder)
    assert b"Secret" in saved(image)
    clean = ScrubMeta()(image)
    assert b"Secret" not in saved(clean)
    torch.testing.assert_close(clean.affine, image.affine)


@pytest.mark.parametrize("name", ["52009229", "0010,0010", "filename_or_obj", "space", "spacing", "deface", "pixdim"])
def test_text_is_dropped_wherever_it_stands(name):
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={name: "DOE^JANE"})
    assert "DOE" not in str(ScrubMeta()(image).meta)
    nested = MetaTensor(torch.zeros(1, 2, 2, 2), meta={name: [{"00100010": "DOE^JANE"}]})
    assert "DOE" not in str(ScrubMeta()(nested).meta)


def test_pseudonyms_are_keyed_and_stable(file, key, tmp_path):
    image = LoadImage(ensure_channel_first=True)(file)
    name = ScrubMeta(key)(image).meta["filename_or_obj"]
    assert name == ScrubMeta(str(key))(image).meta["filename_or_obj"]
    (tmp_path / "other").write_text("f" * 32)
    assert ScrubMeta(tmp_path / "other")(image).meta["filename_or_obj"] != name
    assert "filename_or_obj" not in ScrubMeta()(image).meta
    (tmp_path / "short").write_text("short")
    with pytest.raises(UserError, match="too short"):
        ScrubMeta(tmp_path / "short")


def test_saved_under_the_pseudonym_and_inverted(file, key, tmp_path):
    prepare = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", "RAS", labels=None),
            ScrubMetad("image", key_file=key),
        ]
    )
    data = prepare({"image": file})
    data["pred"] = data["image"].clone()
    save = SaveImaged("pred", output_dir=tmp_path / "out", separate_folder=False, print_log=False, resample=False)
    Compose([Invertd("pred", prepare, "image", nearest_interp=False), save])(data)
    (written,) = (tmp_path / "out").iterdir()
    assert "DOE" not in written.name
    assert b"DOE" not in nib.load(written).to_bytes()
    np.testing.assert_allclose(nib.load(written).get_fdata(), nib.load(file).get_fdata())
    np.testing.assert_allclose(nib.load(written).affine, nib.load(file).affine)


def test_dictionary_version(file):
    assert ScrubMetad is ScrubMetaD is ScrubMetaDict
    data = LoadImaged("image", ensure_channel_first=True)({"image": file})
    data["image_meta_dict"] = {"descrip": "DOE^JANE", "spacing": [1.0, 2.0]}
    clean = ScrubMetad("image")(data)
    assert "DOE" not in str(clean)
    assert clean["image_meta_dict"] == {"spacing": [1.0, 2.0]}
    assert "DOE" in str(data["image_meta_dict"])
    with pytest.raises(KeyError):
        ScrubMetad("absent")(data)
    assert ScrubMetad("absent", allow_missing_keys=True)({"other": 1}) == {"other": 1}
    plain = torch.zeros(1)
    assert ScrubMeta()(plain) is plain


def test_builds_from_a_configuration(key):
    config = {"s": {"_target_": "voxscore.transforms.ScrubMetad", "keys": ["image"], "key_file": str(key)}}
    assert ConfigParser(config).get_parsed_content("s").scrub.pseudonyms is not None
