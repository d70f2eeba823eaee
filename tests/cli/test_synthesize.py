"""`voxscore synthesize`: a data set that is the same whenever, and in however many pieces, it is made."""

import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import load_decathlon_datalist

from voxscore.inferers import volume_seed
from voxscore.training import datalist
from voxscore.volumes import sha256


@pytest.fixture
def synthesize(run, tiny_synthesis):
    """synthesize(*arguments): `run` on the tiny bundle."""
    return lambda *arguments: run("synthesize", "--bundle", tiny_synthesis, "--device", "cpu", *arguments)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def hashes(folder):
    return {
        entry["name"]: (entry["image"]["sha256"], entry["label"]["sha256"]) for entry in manifest(folder)["volumes"]
    }


def test_a_data_set_that_tools_load(synthesize, tmp_path):
    out = tmp_path / "set"
    code, stdout, _ = synthesize("--number", 3, "--output", out)
    assert code == 0
    assert "3 volumes" in stdout
    names = [f"synthetic_{k:04d}" for k in range(3)]
    assert [case["name"] for case in datalist(out)] == names
    assert len(load_decathlon_datalist(out / "dataset.json", is_segmentation=True)) == 3
    for name in names:
        image, label = (nib.load(out / kind / f"{name}.nii.gz") for kind in ("imagesTr", "labelsTr"))
        assert image.shape == label.shape == (12, 20, 14)
        for file in (image, label):
            np.testing.assert_array_equal(file.affine[:3, :3], np.eye(3))
            assert file.header.get_xyzt_units()[0] == "mm"
            assert nib.aff2axcodes(file.affine) == ("R", "A", "S")
            assert file.header["descrip"].tobytes().strip(b"\0") == b""
        assert image.get_data_dtype() == np.float32
        assert set(np.unique(label.dataobj)) <= {0, 1, 2}
    content = manifest(out)
    assert content["synthetic"] is True
    assert content["settings"]["bundle"]["weights_sha256"]
    assert [entry["seed"] for entry in content["volumes"]] == [volume_seed(0, k) for k in range(3)]
    assert {entry["evaluations"] for entry in content["volumes"]} == {content["settings"]["steps"] + 1}
    assert (out / "contact_sheet.png").stat().st_size > 1000
    assert not (out / "dicom").exists()


def test_a_volume_depends_on_seed_and_place_alone(synthesize, tmp_path):
    assert synthesize("--number", 3, "--output", tmp_path / "whole", "--seed", 5)[0] == 0
    assert synthesize("--number", 1, "--output", tmp_path / "pieces", "--seed", 5)[0] == 0
    code, _, stderr = synthesize("--number", 3, "--output", tmp_path / "pieces", "--seed", 5)
    assert code == 0
    assert "1 of 3 volumes are there already" in stderr
    assert hashes(tmp_path / "whole") == hashes(tmp_path / "pieces")
    assert synthesize("--number", 3, "--output", tmp_path / "other", "--seed", 6)[0] == 0
    assert not set(hashes(tmp_path / "other").values()) & set(hashes(tmp_path / "whole").values())


def test_a_killed_run_goes_on(synthesize, tmp_path):
    """What a kill may leave: a pair the manifest does not know, and a pair that is damaged."""
    out = tmp_path / "set"
    synthesize("--number", 3, "--output", out)
    expected = hashes(out)
    content = manifest(out)
    content["volumes"].pop()
    (out / "manifest.json").write_text(json.dumps(content))
    (out / "labelsTr" / "synthetic_0001.nii.gz").unlink()
    assert synthesize("--number", 3, "--output", out)[0] == 0
    assert hashes(out) == expected
    assert sha256(out / "labelsTr" / "synthetic_0001.nii.gz") == expected["synthetic_0001"][1]


def test_steps_and_sampler_are_what_is_used(synthesize, tmp_path):
    evaluations = {}
    for sampler, steps in {"ddim": 3, "heun": 3, "unipc": 4, "ancestral": 4}.items():
        out = tmp_path / sampler
        assert synthesize("--number", 1, "--output", out, "--steps", steps, "--sampler", sampler)[0] == 0
        evaluations[sampler] = manifest(out)["volumes"][0]["evaluations"]
    assert evaluations == {"ddim": 4, "heun": 6, "unipc": 5, "ancestral": 5}
    assert len({hashes(tmp_path / s)["synthetic_0000"] for s in evaluations}) == 4


def test_conditioned_on_masks(synthesize, tmp_path, dataset):
    masks = [dataset / "labels" / f"case_0{k}.nii.gz" for k in (0, 1)]
    out = tmp_path / "set"
    assert synthesize("--condition-on", masks[0], "--condition-on", masks[1], "--number", 3, "--output", out)[0] == 0
    for k, mask in enumerate([*masks, masks[0]]):
        label = nib.load(out / "labelsTr" / f"synthetic_000{k}.nii.gz")
        given = nib.load(mask)
        np.testing.assert_array_equal(np.asarray(label.dataobj), np.asarray(given.dataobj))
        np.testing.assert_array_equal(label.affine, given.affine)
    images = [nib.load(out / "imagesTr" / f"synthetic_000{k}.nii.gz").get_fdata() for k in (0, 2)]
    assert np.abs(images[0] - images[1]).max() > 0.1


def test_a_mask_of_any_geometry_comes_out_in_ras_at_1_mm(synthesize, tmp_path):
    """In the patient's space the label stays where the mask was."""
    array = np.zeros((16, 12, 10), np.uint8)
    array[4:12, 3:9, 2:8], array[4:12, 3:6, 2:8] = 1, 2
    affine = np.array([[0, -2.0, 0, 30], [-1, 0, 0, 5], [0, 0, 1.5, -7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "mask.nii.gz")
    out = tmp_path / "set"
    assert synthesize("--condition-on", tmp_path / "mask.nii.gz", "--output", out)[0] == 0
    label = nib.load(out / "labelsTr" / "synthetic_0000.nii.gz")
    np.testing.assert_array_equal(label.affine[:3, :3], np.eye(3))
    voxels = np.argwhere(np.asarray(label.dataobj) == 1)
    center = (label.affine @ [*voxels.mean(0), 1])[:3]
    expected = (affine @ [*np.argwhere(array == 1).mean(0), 1])[:3]
    np.testing.assert_allclose(center, expected, atol=0.5)
    np.testing.assert_allclose(len(voxels), (array == 1).sum() * 3, rtol=0.2)  # nearest neighbours, 5 to 9 a side


def test_dicom(synthesize, tmp_path):
    out = tmp_path / "set"
    assert synthesize("--number", 2, "--output", out, "--dicom")[0] == 0
    series = [sorted((out / "dicom" / f"synthetic_000{k}").iterdir()) for k in (0, 1)]
    slices = [pydicom.dcmread(file) for file in series[0]]
    assert len(slices) == 14
    assert {s.SOPClassUID for s in slices} == {pydicom.uid.MRImageStorage}
    assert {s.PatientIdentityRemoved for s in slices} == {"YES"}
    assert pydicom.dcmread(series[1][0]).SeriesInstanceUID != slices[0].SeriesInstanceUID
    segmentation = pydicom.dcmread(out / "dicom" / "synthetic_0000_seg.dcm")
    assert segmentation.Modality == "SEG"
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == slices[0].SeriesInstanceUID


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--number", 0], "number 0: asks for no volume"),
        (["--number", -3], "number -3: asks for no volume"),
        (["--steps", 1], "steps 1: are too few"),
        (["--sampler", "best"], "sampler best: is not known"),
        (["--condition-on", "nowhere.nii.gz"], "nowhere.nii.gz"),
    ],
)
def test_bad_options(synthesize, tmp_path, arguments, message):
    code, stdout, stderr = synthesize("--output", tmp_path / "set", *arguments)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8, 8), np.uint8), "is empty"),
        (np.full((8, 8, 8), 7, np.uint8), r"holds labels [7] that"),
        (np.ones((8, 8), np.uint8), "2"),
        (np.ones((200, 8, 8), np.uint8), "a structure of more than 20 x 24 x 20 mm"),
    ],
    ids=["empty", "unknown", "2-D", "large"],
)
def test_bad_masks(synthesize, tmp_path, array, message):
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "mask.nii.gz")
    code, _, stderr = synthesize("--condition-on", tmp_path / "mask.nii.gz", "--output", tmp_path / "set")
    assert code == 2
    assert stderr.count("\n") == 1
    assert "mask.nii.gz" in stderr
    assert message in stderr
    assert not (tmp_path / "set").exists()


def test_a_folder_with_other_files_is_left_alone(synthesize, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, stderr = synthesize("--output", tmp_path)
    assert code == 2
    assert "is not empty" in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_other_settings_need_another_folder(synthesize, tmp_path):
    synthesize("--output", tmp_path / "set")
    before = hashes(tmp_path / "set")
    code, _, stderr = synthesize("--output", tmp_path / "set", "--seed", 1)
    assert code == 2
    assert "volumes of another seed" in stderr
    assert hashes(tmp_path / "set") == before


def test_a_bundle_that_only_segments(run, tiny_bundle, tmp_path):
    code, _, stderr = run("synthesize", "--bundle", tiny_bundle, "--output", tmp_path / "set")
    assert code == 2
    assert "does not synthesize" in stderr


def test_weights_of_another_network(synthesize, tiny_synthesis, tmp_path):
    config = tiny_synthesis / "configs/inference.json"
    before = config.read_text()
    config.write_text(before.replace('"channels": [8, 8, 8]', '"channels": [8, 8]'))
    code, _, stderr = synthesize("--output", tmp_path / "set")
    config.write_text(before)
    assert code == 2
    assert "does not fit the bundle's network" in stderr


def test_nan_costs_one_volume(synthesize, tmp_path, monkeypatch):
    """The network breaks while it makes the second volume of three."""
    from voxscore.networks import JointScoreUNet

    calls, forward = [], JointScoreUNet.forward

    def broken(self, x, t=None, cond=None):
        calls.append(t)
        return forward(self, x, t, cond) * (float("nan") if len(calls) == 6 else 1.0)

    monkeypatch.setattr(JointScoreUNet, "forward", broken)
    out = tmp_path / "set"
    code, _, stderr = synthesize("--number", 3, "--output", out, "--steps", 4)
    assert code == 1
    assert "synthetic_0001: the denoiser returned NaN or infinity" in stderr
    assert "noise level" in stderr
    assert sorted(hashes(out)) == ["synthetic_0000", "synthetic_0002"]
    assert not list(out.rglob("*synthetic_0001*"))
    assert [f["name"] for f in manifest(out)["failures"]] == ["synthetic_0001"]
    monkeypatch.setattr(JointScoreUNet, "forward", forward)
    assert synthesize("--number", 3, "--output", out, "--steps", 4)[0] == 0
    assert manifest(out)["failures"] == []


def test_a_full_disk_leaves_no_half_of_a_pair(synthesize, tmp_path, monkeypatch):
    import voxscore.synthesis

    written = voxscore.synthesis.write_volume
    count = []

    def full(array, like, path, *arguments, **options):
        count.append(path)
        if len(count) == 4:  # the label of the second volume
            raise OSError(28, "No space left on device")
        written(array, like, path, *arguments, **options)

    monkeypatch.setattr(voxscore.synthesis, "write_volume", full)
    out = tmp_path / "set"
    code, _, stderr = synthesize("--number", 3, "--output", out)
    assert code == 1
    assert "the disk is full" in stderr
    assert [p.name for p in sorted(out.rglob("*.nii.gz"))] == ["synthetic_0000.nii.gz"] * 2
    assert list(hashes(out)) == ["synthetic_0000"]


@pytest.mark.filterwarnings("ignore")  # of MONAI, about its own commands
def test_the_engine_makes_the_same_volumes(synthesize, tiny_synthesis, tmp_path):
    """`monai.bundle run` at batch size 2 and `voxscore synthesize`, one by one."""
    from monai.bundle import run as bundle_run

    assert synthesize("--number", 3, "--output", tmp_path / "ours")[0] == 0
    bundle_run(
        config_file=str(tiny_synthesis / "configs/inference.json"),
        bundle_root=str(tiny_synthesis),
        output_dir=str(tmp_path / "theirs"),
        device="$torch.device('cpu')",
        number=3,
        batch_size=2,
    )
    for k in range(3):
        for kind in ("imagesTr", "labelsTr"):
            ours, theirs = (nib.load(tmp_path / w / kind / f"synthetic_000{k}.nii.gz") for w in ("ours", "theirs"))
            np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), atol=1e-4)
            np.testing.assert_array_equal(ours.affine, theirs.affine)


def test_seeds_reach_the_noise(tiny_synthesis):
    from voxscore.bundles import find_bundle
    from voxscore.synthesis import Synthesizer

    synthesizer = Synthesizer(find_bundle(tiny_synthesis), torch.device("cpu"))
    first, again, other = (synthesizer(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    assert abs(np.corrcoef(first.image.ravel(), other.image.ravel())[0, 1]) < 0.5
