"""What `voxscore segment --samples` promises: volumes that agree with each other, and refusals that write nothing."""

import base64
import errno
import io
import json
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from voxscore import segmentation
from voxscore.bundles import find_bundle
from voxscore.evaluation import label_volumes, volume_interval
from voxscore.inferers import SamplerInferer, volume_seed
from voxscore.networks import JointScoreUNet
from voxscore.segmentation import Outputs, Segmenter, segment_volume
from voxscore.volumes import read_label_map, read_volume, sha256, write_volume

NAMES = {1: "anterior hippocampus", 2: "posterior hippocampus"}
SAMPLED = ("", "_entropy", "_probabilities")
SIGMA_DATA = 0.3


def joint_config(channels):
    """What makes a segmentation bundle one with a posterior."""
    diffusion = "voxscore.diffusion."
    group = {"_target_": diffusion + "Group"}
    return {
        "network_def": {
            "_target_": "voxscore.networks.JointScoreUNet",
            "spatial_dims": 3,
            "image_channels": 1,
            "classes": 3,
            "channels": channels,
        },
        "path": {"_target_": diffusion + "EDM"},
        "groups": [
            {**group, "name": "image", "channels": 1, "sigma_data": 1.0},
            {**group, "name": "label", "channels": 3, "categorical": True, "sigma_data": SIGMA_DATA},
        ],
        "steps": 4,
        "sampling": {
            "_target_": "voxscore.inferers.SamplerInferer",
            "denoiser": {
                "_target_": diffusion + "JointNetDenoiser",
                "_mode_": "callable",
                "path": "@path",
                "groups": "@groups",
            },
            "times": "$karras_times(@path, @steps, clean=True)",
            "sampler": {"_target_": diffusion + "DPMSolver", "order": 2},
            "posterior": "$lambda denoiser, image: condition(denoiser, 'image', image)",
            "channels": 3,
            "full_precision": True,
        },
    }


@pytest.fixture(scope="module")
def tiny_posterior(tmp_path_factory, tiny_bundle):
    """The tiny bundle with a joint network of random weights, which can be sampled."""
    root = tmp_path_factory.mktemp("bundles") / "tiny_posterior"
    shutil.copytree(tiny_bundle, root)
    file = root / "configs/inference.json"
    config = json.loads(file.read_text()) | joint_config([8, 8, 8])
    config["imports"] += [f"$from voxscore.diffusion import {name}" for name in ("condition", "karras_times")]
    file.write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = JointScoreUNet(3, 1, 3, channels=(8, 8, 8))
        torch.nn.init.normal_(network.head[-1].weight)  # it starts at 0, where all classes are alike
    torch.save(network.state_dict(), root / "models/model.pt")
    file = root / "configs/metadata.json"
    digest = {"models/model.pt": sha256(root / "models/model.pt")}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_sha256": digest}))
    return root


@pytest.fixture
def sample(run, tiny_posterior):
    """sample(*arguments): `voxscore segment` with the tiny posterior."""
    return lambda *arguments: run("segment", "--bundle", tiny_posterior, "--device", "cpu", *arguments)


@pytest.fixture(scope="module")
def segmenter(tiny_posterior):
    return Segmenter(find_bundle(tiny_posterior), torch.device("cpu"))


@pytest.fixture
def crop(crops):
    return read_volume(crops / "a.nii.gz")


@pytest.fixture
def never_samples(monkeypatch):
    """The network must not be reached."""

    def refuse(*args, **kwargs):
        raise AssertionError("sampled in vain")

    monkeypatch.setattr(SamplerInferer, "__call__", refuse)
    monkeypatch.setattr(JointScoreUNet, "forward", refuse)


def files_below(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


def the_line(stderr, *texts):
    """The one line of stderr that contains all the texts."""
    (line,) = [line for line in stderr.splitlines() if all(str(text) in line for text in texts)]
    assert line.startswith("voxscore: ")
    assert len(line.partition("; ")[2]) > 5
    return line


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_the_files_say_what_the_samples_say(sample, segmenter, crop, tmp_path):
    code, stdout, stderr = sample(crop.path, "-o", tmp_path / "out", "--samples", 6, "--seed", 3, "--json")
    assert (code, stderr) == (0, "")
    samples = segmenter.sample(crop, 6, 3).posterior.samples
    assert len(np.unique(samples)) == 3
    p = voxels(tmp_path / "out/a_probabilities.nii.gz")
    assert p.dtype == np.float32
    assert np.array_equal(p, np.moveaxis(segmenter(crop).probabilities, 0, -1))
    entropy = voxels(tmp_path / "out/a_entropy.nii.gz")
    assert entropy.dtype == np.float32
    logarithm = np.log(p.astype(float), out=np.zeros(p.shape), where=p > 0)
    np.testing.assert_allclose(entropy, -(p * logarithm).sum(-1), atol=1e-6)
    labels = read_label_map(tmp_path / "out/a.nii.gz").array
    assert np.array_equal(labels, p.argmax(-1))
    (entry,) = json.loads(stdout)["results"]
    assert entry["volumes_ml"] == pytest.approx(label_volumes(labels, crop.affine, NAMES), abs=1e-6)
    expected = volume_interval(samples, crop.affine, NAMES, 5 / 7)
    assert entry["volume_intervals_ml"].keys() == expected.keys() == entry["volumes_ml"].keys()
    for name, interval in entry["volume_intervals_ml"].items():
        assert list(interval) == ["median", "low", "high", "level"]
        assert tuple(interval.values())[:3] == pytest.approx(expected[name], abs=1e-6)
        assert interval["level"] == pytest.approx(5 / 7, abs=1e-6)
        assert interval["low"] <= interval["median"] <= interval["high"]
    assert entry["sampling"] == {"samples": 6, "seed": 3, "evaluations": 4, "sampler": "DPMSolver"}
    assert [Path(file["path"]).name for file in entry["outputs"]] == [
        "a.nii.gz",
        "a_probabilities.nii.gz",
        "a_entropy.nii.gz",
    ]
    assert all(file["sha256"] == sha256(file["path"]) for file in entry["outputs"])


def test_a_seed_is_a_sample_whatever_the_batch(segmenter, crop, monkeypatch):
    together = segmenter.sample(crop, 6, 10)
    monkeypatch.setattr(segmentation, "BATCH", 1)
    alone = segmenter.sample(crop, 6, 10)
    samples = together.posterior.samples
    # Arithmetic of another batch may round a voxel over a boundary.
    assert (alone.posterior.samples == samples).mean() > 0.9999
    assert (alone.labels == together.labels).mean() > 0.999
    assert alone.posterior.evaluations == together.posterior.evaluations == 4
    fewer = segmenter.sample(crop, 2, 10).posterior.samples
    assert (fewer == samples[:2]).mean() > 0.9999
    assert (samples[0] != samples[1]).any()
    neighbour = segmenter.sample(crop, 1, 11).posterior.samples
    assert all((neighbour[0] != one).any() for one in samples)


def test_a_sample_is_the_end_of_its_run(segmenter, crop):
    """Volume, network and labels share one grid here, so nothing lies between the run and the sample."""
    result = segmenter.sample(crop, 3, 5)
    image = segmenter.prepare({"image": crop})["image"].as_tensor()[None]
    ends = torch.cat([segmenter.sampling(image, segmenter.network, seeds=[volume_seed(5, k)]) for k in range(3)])
    assert (result.posterior.samples == ends.argmax(1).numpy()).mean() > 0.9999


PRIOR = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])


@pytest.fixture
def known_posterior(monkeypatch):
    """A network that knows independent voxels: of one prior where it is dark, of another elsewhere.

    What the noisy label of a voxel says of its class, `JointNetDenoiser` adds; the denoiser is then exact.
    """

    def forward(self, x, t=None, cond=None):
        prior = PRIOR[(x[:, 0] > 1).long()].movedim(-1, 1).log()
        if t is None:
            return prior
        return torch.cat([x[:, :1], prior], 1)

    monkeypatch.setattr(JointScoreUNet, "forward", forward)


def test_samples_have_the_distribution_of_the_posterior(tiny_posterior, crop, known_posterior, tmp_path):
    root = tmp_path / "finer"
    shutil.copytree(tiny_posterior, root)
    file = root / "configs/inference.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": 30}))
    segmenter = Segmenter(find_bundle(root), torch.device("cpu"))
    result = segmenter.sample(crop, 8)
    bright = (segmenter.prepare({"image": crop})["image"].as_tensor()[0] > 1).numpy()
    assert bright.sum() > 400
    for region, prior in zip((~bright, bright), PRIOR.numpy(), strict=True):
        share = [(result.posterior.samples[:, region] == k).mean() for k in range(3)]
        # Four standard errors of so many draws, and half a percent for the steps of the sampler.
        np.testing.assert_allclose(share, prior, atol=4 * 0.5 / np.sqrt(8 * region.sum()) + 0.005)
        np.testing.assert_allclose(result.probabilities[:, region], np.broadcast_to(prior[:, None], (3, region.sum())))


def test_right_is_left_mirrored(tiny_posterior, crop, known_posterior):
    left, right = (Segmenter(find_bundle(tiny_posterior), torch.device("cpu"), side) for side in ("left", "right"))
    samples = right.sample(crop, 2).posterior.samples
    mirrored = nib.Nifti1Image(crop.array[::-1], crop.affine)
    nib.save(mirrored, crop.path.with_name("mirrored.nii"))
    expected = left.sample(read_volume(crop.path.with_name("mirrored.nii")), 2).posterior.samples
    assert (samples[:, ::-1] == expected).mean() > 0.9999
    assert (samples != expected).any()


def test_geometry_is_the_inputs_bit_for_bit(sample, tmp_path, oblique):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    array = np.random.default_rng(0).normal(size=(20, 18, 7)).cumsum(0).cumsum(1).astype(np.float32)
    nib.save(nib.Nifti1Image(array, oblique), folder / "a.nii")
    like = read_volume(folder / "a.nii")
    write_volume(like.array, like, folder / "c.nrrd")
    assert sample(folder, "-o", out, "--samples", 2) == (0, "", "")
    assert files_below(out) == sorted(f"{n}{kind}{s}" for n, s in (("a", ".nii"), ("c", ".nrrd")) for kind in SAMPLED)
    before = nib.load(folder / "a.nii")
    for kind in SAMPLED:
        after = nib.load(out / f"a{kind}.nii")
        assert np.array_equal(after.affine, before.affine)
        assert after.shape[:3] == array.shape
        for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "xyzt_units"):
            assert np.array_equal(before.header[field], after.header[field])
    for kind in ("", "_entropy"):
        assert np.array_equal(read_volume(out / f"c{kind}.nrrd").affine, read_volume(folder / "c.nrrd").affine)
    assert voxels(out / "a_probabilities.nii").sum(-1) == pytest.approx(1, abs=1e-6)


def test_samples_leave_the_label_map_as_it_is(sample, crop, tmp_path):
    assert sample(crop.path, "-o", tmp_path / "none", "--probabilities")[0] == 0
    for n, seed in ((1, 0), (3, 7)):
        code, stdout, _ = sample(crop.path, "-o", tmp_path / str(n), "--samples", n, "--seed", seed, "--json")
        assert code == 0
        for name in ("a.nii.gz", "a_probabilities.nii.gz"):
            assert np.array_equal(voxels(tmp_path / str(n) / name), voxels(tmp_path / "none" / name))
        assert len(json.loads(stdout)["results"][0]["volume_intervals_ml"]) == (0 if n == 1 else 2)


def test_without_samples_nothing_changes(sample, run, crop, tiny_posterior, tmp_path):
    """The same bundle without `sampling` is a plain segmentation bundle; nobody can tell them apart."""
    root = tmp_path / "plain" / "tiny_posterior"
    shutil.copytree(tiny_posterior, root)
    file = root / "configs/inference.json"
    config = json.loads(file.read_text())
    del config["sampling"]
    file.write_text(json.dumps(config))
    rest = (crop.path, "--device", "cpu", "--probabilities", "--json")
    manifests = []
    for out, bundle in ((tmp_path / "one", tiny_posterior), (tmp_path / "two", root)):
        code, stdout, stderr = run("segment", "--bundle", bundle, "-o", out, *rest)
        assert (code, stderr) == (0, "")
        manifests.append(json.loads(stdout))
    assert files_below(tmp_path / "one") == ["a.nii.gz", "a_probabilities.nii.gz"]
    for name in ("a.nii.gz", "a_probabilities.nii.gz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for manifest in manifests:
        (entry,) = manifest["results"]
        keys = ["input", "input_sha256", "outputs", "volumes_ml", "seconds", "warnings"]
        assert list(entry) == keys


def test_dicom(sample, tmp_path, save_series):
    array = np.random.default_rng(0).integers(0, 900, (20, 24, 12)).astype(np.uint16)
    folder = save_series(array, affine=np.diag([1.0, 1.0, 1.5, 1.0]))
    assert sample(folder, "-o", tmp_path / "out", "--samples", 2) == (0, "", "")
    assert files_below(tmp_path / "out") == ["series.dcm", "series_entropy.nii.gz", "series_probabilities.nii.gz"]
    assert voxels(tmp_path / "out/series_entropy.nii.gz").shape == array.shape


def test_report_shows_intervals_and_entropy(sample, crops, tmp_path):
    code, stdout, _ = sample(crops / "a.nii.gz", "-o", tmp_path / "out", "--samples", 5, "--report", "--json")
    assert code == 0
    page = (tmp_path / "out/report.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert len(pictures) == 2
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures]
    assert sizes[0] == sizes[1]
    assert page.count("66.7 % interval, mL") == 1
    (entry,) = json.loads(stdout)["results"]
    for interval in entry["volume_intervals_ml"].values():
        assert f"<td>{interval['low']:.2f} to {interval['high']:.2f}</td>" in page


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("n", "head"), [(5, "[mL, 66.7 % interval]"), (1, "anterior hippocampus [mL]")])
def test_terminal_shows_progress_and_intervals(sample, crops, tmp_path, monkeypatch, n, head):
    out, err = Terminal(), Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert sample(crops, "-o", tmp_path / "out", "--samples", n)[0] == 0
    assert "segmenting" in err.getvalue()
    assert head in out.getvalue()
    intervals = re.findall(r"\d\.\d\d \(\d\.\d\d to \d\.\d\d\)", out.getvalue())
    assert len(intervals) == (4 if n > 1 else 0)


def test_progress_is_told_of_every_sample(segmenter, crop):
    told = []
    segmenter.sample(crop, 5, progress=lambda: told.append(1))
    assert len(told) == 5


def test_help_shows_the_options(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, stdout, _ = run("segment", "--help")
    assert code == 0
    assert "--samples" in stdout
    assert "--seed" in stdout
    assert "hippocampus_posterior" in stdout


@pytest.mark.parametrize("kind", SAMPLED)
def test_full_disk_leaves_nothing_of_the_volume(sample, crops, tmp_path, monkeypatch, kind):
    write = Path.write_bytes

    def stop(self, content):
        if f".a{kind}." not in self.name:
            return write(self, content)
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", stop)
    code, stdout, stderr = sample(crops, "-o", tmp_path / "out", "--samples", 1, "--json")
    assert code == 1
    the_line(stderr, f"{tmp_path / 'out'}/a{kind}.nii.gz: the disk is full")
    assert files_below(tmp_path / "out") == sorted(f"b{kind}.nii.gz" for kind in SAMPLED)
    assert [len(json.loads(stdout)[key]) for key in ("results", "failures")] == [1, 1]


def test_existing_entropy(sample, crop, tmp_path, never_samples):
    (tmp_path / "a_entropy.nii.gz").write_bytes(b"precious")
    code, _, stderr = sample(crop.path, "-o", tmp_path, "--samples", 2)
    assert code == 2
    the_line(stderr, "a_entropy.nii.gz", "exists already", "--overwrite")
    assert (tmp_path / "a_entropy.nii.gz").read_bytes() == b"precious"


def test_bundle_without_posterior(segment, crops, tmp_path, never_samples):
    code, stdout, stderr = segment(crops, "-o", tmp_path / "out", "--samples", 4)
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    the_line(stderr, "bundle tiny", "has no posterior to sample", "hippocampus_posterior", "leave --samples away")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--samples", 0], ["samples 0", "asks for no sample", "give 1 or more"]),
        (["--samples", -3], ["samples -3", "asks for no sample"]),
        (["--seed", 5], ["--seed", "none are asked for", "give --samples too"]),
        (["--seed", 0], ["--seed", "none are asked for"]),
        (["--samples", 2, "--seed", -1], ["seed -1", "is out of range"]),
        (["--samples", 2, "--seed", 2**64], ["is out of range", "below 2^63"]),
    ],
)
def test_refused_options(sample, crops, tmp_path, never_samples, options, texts):
    code, stdout, stderr = sample(crops, "-o", tmp_path / "out", *options)
    assert (code, stdout) == (2, "")
    assert stderr.count("\n") == 1
    the_line(stderr, *texts)
    assert not (tmp_path / "out").exists()


def test_larger_than_the_window(sample, crops, tmp_path):
    """Of 65 mm, one more than the window; of 32.5 mm in as many voxels it fits."""
    array = np.random.default_rng(0).normal(size=(65, 16, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), crops / "c.nii")
    nib.save(nib.Nifti1Image(array, np.diag([0.5, 1, 1, 1])), crops / "d.nii")
    code, _, stderr = sample(crops / "c.nii", crops / "d.nii", "-o", tmp_path / "out", "--samples", 1)
    assert code == 1
    the_line(stderr, crops / "c.nii", "65 x 16 x 16 voxels", "at most 64 x 80 x 64", "crop it")
    assert files_below(tmp_path / "out") == sorted(f"d{kind}.nii" for kind in SAMPLED)


def fail_once(monkeypatch, owner, name, failure, number=1):
    """One call of a method fails, the first or another."""
    method, calls = getattr(owner, name), []

    def call(self, *args, **kwargs):
        calls.append(1)
        return failure(method(self, *args, **kwargs)) if len(calls) == number else method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def raise_out_of_memory(_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("owner", "name", "failure", "number", "texts"),
    [
        (JointScoreUNet, "forward", lambda x: x * float("nan"), 1, ["cannot be segmented", "NaN", "intensities"]),
        (JointScoreUNet, "forward", lambda x: x * float("nan"), 2, ["NaN", "noise level", "= 80", "--seed"]),
        (SamplerInferer, "__call__", raise_out_of_memory, 1, ["memory", "--device cpu"]),
    ],
)
def test_a_volume_that_cannot_be_sampled_costs_no_other(
    sample, crops, tmp_path, monkeypatch, owner, name, failure, number, texts
):
    fail_once(monkeypatch, owner, name, failure, number)
    code, stdout, stderr = sample(crops, "-o", tmp_path / "out", "--samples", 2, "--json")
    assert code == 1
    the_line(stderr, crops / "a.nii.gz", *texts)
    assert files_below(tmp_path / "out") == sorted(f"b{kind}.nii.gz" for kind in SAMPLED)
    assert [len(json.loads(stdout)[key]) for key in ("results", "failures")] == [1, 1]


def test_entropy_needs_samples(segmenter, crop, tmp_path):
    with pytest.raises(ValueError, match="no entropy without samples"):
        segment_volume(segmenter, crop, Outputs(entropy=tmp_path / "entropy.nii"))
    assert files_below(tmp_path) == files_below(crop.path.parent)
