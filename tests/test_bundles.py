"""Every bundle in plugins/ works under every MONAI command, offline, on CPU, and says the truth about itself."""

import hashlib
import json
import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from monai.bundle import ckpt_export, create_workflow, load, onnx_export, run, verify_net_in_out
from safetensors.torch import load_file

from voxscore.bundles import find_bundle, installed_bundles
from voxscore.errors import UserError
from voxscore.inferers import volume_seed
from voxscore.measured import read_measurement
from voxscore.measurement import CartesianMRI, gaussian_noise, simulate_maps
from voxscore.reconstruction import Reconstructor
from voxscore.segmentation import Segmenter
from voxscore.synthesis import Synthesizer
from voxscore.volumes import make_raw, read_volume, write_raw

# MONAI's commands warn about their own futures (torch.jit, configuration execution); our code is held to
# "warnings are errors" by its own tests.
pytestmark = pytest.mark.filterwarnings("ignore")

BUNDLES = installed_bundles()
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"],
    "properties": {
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 2, "maxItems": 3},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "channel_def": {"type": "object"},
    },
}
HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
# MONAI's required keys, those its tools read (the first input `image`, the output `pred`), and voxscore's own.
METADATA = {
    "type": "object",
    "required": [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright", "network_data_format"),
        *("intended_use", "data_source", "weights_sha256", "eval_metrics"),
    ],
    "properties": {
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "changelog": {"type": "object", "additionalProperties": {"type": "string"}},
        "required_packages_version": {"type": "object", "required": ["voxscore"]},
        "supported_apps": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
        "eval_metrics": {"type": "object", "minProperties": 1},
        "weights_sha256": {
            "type": "object",
            "required": ["models/model.pt", "models/model.safetensors"],
            "additionalProperties": HASH,
        },
        "labels": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["name", "color", "code"],
                "properties": {"color": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}},
            },
        },
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                "inputs": {"type": "object", "required": ["image"], "additionalProperties": TENSOR},
                "outputs": {"type": "object", "required": ["pred"], "additionalProperties": TENSOR},
            },
        },
    },
}

# What voxscore's own inference of label maps needs besides.
LABELLED = {"required": ["labels", "field_of_view_mm"]}

CPU = torch.device("cpu")


def config(bundle, name):
    return json.loads(bundle.config(name).read_text())


def has(bundle, name):
    return (bundle.root / f"configs/{name}.json").is_file()


def synthesizes(bundle):
    return "conditional" in config(bundle, "inference")


def reconstructs(bundle):
    return "method" in config(bundle, "inference")


def labels(bundle):
    return {} if reconstructs(bundle) else bundle.labels


def opened(bundle):
    """The bundle as voxscore's commands load it."""
    return (Reconstructor if reconstructs(bundle) else Synthesizer if synthesizes(bundle) else Segmenter)(bundle, CPU)


def trainer(bundle):
    """The bundle whose train.json made the weights: that which holds the file, if another links to it."""
    return find_bundle((bundle.root / "models/model.pt").resolve().parents[1])


def sizes(train):
    """Every size that the transforms of a train.json pad or crop to, by id."""
    return {
        f"{name}#{i}#{key}": transform[key]
        for name in train
        if name.endswith("_transforms")
        for i, transform in enumerate(train[name])
        for key in ("spatial_size", "roi_size", "size")
        if key in transform
    }


@pytest.fixture
def brains(dataset, tmp_path):
    """A folder of volumes of two subjects, of which one is kept out of training."""
    for i, subject in enumerate(("subject", "patient07")):
        (tmp_path / "brains" / subject).mkdir(parents=True)
        for k in range(4):
            shutil.copy(dataset / f"images/case_{4 * i + k:02d}.nii.gz", tmp_path / "brains" / subject / f"T{k}.nii.gz")
    return tmp_path / "brains"


@pytest.fixture
def training_data(bundle, dataset, brains):
    """What a train.json is told of its data."""
    if reconstructs(bundle):
        return {"dataset_dir": str(brains), "volumes": ["*/T*.nii.gz"]}
    return {"dataset_dir": str(dataset)}


def each(bundles):
    return pytest.mark.parametrize("bundle", bundles, ids=lambda b: b.name)


every_bundle = each(BUNDLES)
those_that_train = each([b for b in BUNDLES if has(b, "train")])
those_that_segment = each([b for b in BUNDLES if not synthesizes(b) and not reconstructs(b)])
those_that_reconstruct = each([b for b in BUNDLES if reconstructs(b)])
those_that_synthesize = each([b for b in BUNDLES if synthesizes(b)])


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a bundle reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def copied(bundle, tmp_path):
    shutil.copytree(bundle.root, tmp_path / bundle.name)
    return find_bundle(tmp_path / bundle.name)


@every_bundle
def test_folder_is_complete(bundle):
    names = {str(p.relative_to(bundle.root)) for p in bundle.root.rglob("*") if p.is_file()}
    needed = {
        *("configs/metadata.json", "configs/inference.json", "configs/logging.conf"),
        *bundle.metadata["weights_sha256"],
        *("docs/README.md", "docs/data_license.txt", "LICENSE"),
    }
    training = {f"configs/{n}.json" for n in ("train", "evaluate", "multi_gpu_train")}
    shown = re.findall(r"\]\(([^)]+\.png)\)", (bundle.root / "docs/README.md").read_text(encoding="utf-8"))
    pictures = {f"docs/{n}" for n in shown}
    assert pictures <= names
    assert names - pictures in (needed, needed | training)
    assert sum((bundle.root / n).stat().st_size for n in names) < 60e6


def test_links_are_ones_that_a_wheel_can_follow():
    """A wheel holds the file that a link leads to. In any checkout it must lead to one, and out of none."""
    plugins = BUNDLES[0].root.parent
    links = [p for p in plugins.rglob("*") if p.is_symlink()]
    assert {p.parents[1].name for p in links} == {b.name for b in BUNDLES if not has(b, "train")}
    for link in links:
        assert not os.path.isabs(os.readlink(link))
        assert link.resolve(strict=True).is_file()
        assert link.resolve().is_relative_to(plugins.resolve())


@every_bundle
def test_metadata(bundle):
    jsonschema.validate(bundle.metadata, METADATA if reconstructs(bundle) else METADATA | {"allOf": [LABELLED]})
    assert bundle.version in bundle.metadata["changelog"]
    classes = bundle.metadata["network_data_format"]["outputs"]["pred"]
    assert len(classes["channel_def"]) == classes["num_channels"]
    assert {str(v): label.name for v, label in labels(bundle).items()} == {
        k: v for k, v in classes["channel_def"].items() if k != "0"
    }


@every_bundle
def test_weights_are_the_named_ones_and_tensors_only(bundle):
    for file, digest in bundle.metadata["weights_sha256"].items():
        assert hashlib.sha256((bundle.root / file).read_bytes()).hexdigest() == digest
    state = torch.load(bundle.root / "models/model.pt", weights_only=True)
    again = load_file(bundle.root / "models/model.safetensors")
    assert state.keys() == again.keys()
    assert all(torch.equal(state[k], again[k]) for k in state)


@every_bundle
def test_training_and_inference_agree(bundle):
    """A bundle must be complete in itself, so the files repeat each other; this keeps them equal."""
    train, inference = config(trainer(bundle), "train"), config(bundle, "inference")
    differ = ("squeeze_excitation", "deep_heads")
    plain = [{k: v for k, v in c["network_def"].items() if k not in differ} for c in (train, inference)]
    assert plain[0] == plain[1]
    assert inference["network_def"]["squeeze_excitation"] == train["squeeze_excitation"]
    # The spread of samples is calibrated after training.
    groups = [{k: v for k, v in g.items() if k != "correlation_gain"} for g in inference.get("groups", [])]
    assert groups == train.get("groups", [])
    for name in ("path", "image_gaussian"):  # of joint networks
        assert inference.get(name) == train.get(name)
    if reconstructs(bundle):
        fixed = ("net", "_mode_")
        denoisers = (train["denoiser"], train["validate"]["inferer"]["denoiser"], inference["inferer"]["denoiser"])
        first, *others = ({k: v for k, v in d.items() if k not in fixed} for d in denoisers)
        assert all(other == first for other in others)
        assert inference["method"]["sigma_data"] == first["sigma_data"] == train["objective"]["weight"]["sigma_data"]
        return
    if synthesizes(bundle):
        assert all(size == inference["size"] for size in sizes(train).values())
        return

    def steps(transforms):
        loading = ("voxscore.transforms.LoadVolumed", "Flipd")
        return [
            {k: v for k, v in t.items() if k not in ("keys", "mode")}
            for t in transforms
            if t["_target_"] not in loading
        ]

    assert steps(train["preprocessing_transforms"]) == steps(inference["preprocessing"]["transforms"])
    assert train["validate"]["inferer"] == inference["inferer"]


@pytest.mark.parametrize(
    ("bundle", "kind"),
    [pytest.param(b, k, id=f"{b.name}-{k}") for b in BUNDLES for k in ("inference", "train") if has(b, k)],
)
def test_properties(bundle, dataset, training_data, tmp_path, kind):
    data = {"dataset_dir": str(dataset / "images")} if kind == "inference" else training_data
    workflow = create_workflow(
        config_file=str(bundle.config(kind)),
        workflow_type=kind,
        bundle_root=str(bundle.root),
        output_dir=str(tmp_path),
        logging_file=False,
        **data,
    )
    assert workflow.check_properties() == []


@every_bundle
def test_load(bundle):
    network = load(bundle.name, bundle_dir=str(bundle.root.parent), workflow_type="inference", device="cpu")
    state = torch.load(bundle.root / "models/model.pt", weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


@every_bundle
def test_verify_net_in_out(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle.root / "configs/metadata.json"),
        config_file=str(bundle.config("inference")),
        device="cpu",
    )


def export(command, bundle, file):
    command(
        filepath=str(file),
        net_id="network_def",
        ckpt_file=str(bundle.root / "models/model.pt"),
        meta_file=str(bundle.root / "configs/metadata.json"),
        config_file=str(bundle.config("inference")),
        input_shape=[1, 1, 16, 24, 16],
        **({"use_trace": True} if command is ckpt_export else {}),
    )


@every_bundle
def test_exports_to_torchscript(bundle, tmp_path):
    """Called with an image alone, every bundle's network returns what its metadata says."""
    export(ckpt_export, bundle, tmp_path / "model.ts")
    network = load(bundle.name, bundle_dir=str(bundle.root.parent), workflow_type="inference", device="cpu").eval()
    x = torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        y = network(x)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), y, rtol=1e-3, atol=1e-3)
    assert y.shape == (1, bundle.metadata["network_data_format"]["outputs"]["pred"]["num_channels"], 16, 24, 16)


@those_that_train
def test_exports_to_onnx(bundle, tmp_path):
    """The most expensive check, so once for a network that several bundles share."""
    export(onnx_export, bundle, tmp_path / "model.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))


def run_inference(bundle, folder, output, **overrides):
    run(
        config_file=str(bundle.config("inference")),
        logging_file=str(bundle.root / "configs/logging.conf"),
        bundle_root=str(bundle.root),
        dataset_dir=str(folder),
        output_dir=str(output),
        device="$torch.device('cpu')",
        **overrides,
    )


@those_that_segment
@pytest.mark.parametrize("side", ["left", "right"])
def test_bundle_run_equals_voxscore_segment(bundle, dataset, tmp_path, side):
    (tmp_path / "one").mkdir()
    file = shutil.copy(dataset / "images" / "case_00.nii.gz", tmp_path / "one")
    run_inference(bundle, tmp_path / "one", tmp_path / "out", side=side)
    theirs = nib.load(tmp_path / "out" / "case_00_seg.nii.gz")
    ours = Segmenter(bundle, CPU, side)(read_volume(file))
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), ours.labels)
    np.testing.assert_array_equal(theirs.affine, nib.load(file).affine)


@those_that_segment
def test_sides_mirror_each_other(bundle, dataset, tmp_path):
    """The documented convention: the right structure is segmented as the mirror image of a left one."""
    volume = read_volume(dataset / "images" / "case_01.nii.gz")
    mirrored = replace(volume, array=volume.array[::-1].copy())
    left = Segmenter(bundle, CPU, "left")(volume)
    right = Segmenter(bundle, CPU, "right")(mirrored)
    np.testing.assert_allclose(right.probabilities[:, ::-1], left.probabilities, atol=1e-6)
    unmirrored = Segmenter(bundle, CPU, "left")(mirrored)
    assert np.abs(unmirrored.probabilities[:, ::-1] - left.probabilities).max() > 1e-3


@those_that_segment
def test_an_unknown_side_is_an_error(bundle, dataset, tmp_path):
    with pytest.raises(RuntimeError):
        run_inference(bundle, dataset / "images", tmp_path, side="Right")


@those_that_synthesize
def test_bundle_run_synthesizes_what_voxscore_does(bundle, tmp_path):
    run_inference(bundle, "", tmp_path, number=2, steps=2)
    for kind in ("imagesTr", "labelsTr"):
        names = sorted(p.name for p in (tmp_path / kind).iterdir())
        assert names == ["synthetic_0000.nii.gz", "synthetic_0001.nii.gz"]
    synthesizer = Synthesizer(bundle, CPU, steps=2)
    for k in range(2):
        image, label = (nib.load(tmp_path / kind / f"synthetic_{k:04d}.nii.gz") for kind in ("imagesTr", "labelsTr"))
        assert image.shape == label.shape == tuple(bundle.metadata["field_of_view_mm"])
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.float32, np.uint8)
        assert set(np.unique(label.dataobj)) <= {0, *bundle.labels}
        ours = synthesizer(volume_seed(0, k))
        np.testing.assert_array_equal(np.asarray(image.dataobj), ours.image)
        np.testing.assert_array_equal(np.asarray(label.dataobj), ours.labels)
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_array_equal(image.affine, ours.affine)


@pytest.fixture
def kspace(tmp_path):
    """A folder with one scan of an ellipsoid by four coils, every second line of it and the middle."""
    shape, affine = (24, 24, 16), np.diag([1.1, 0.9, 2.0, 1.0])
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    x = torch.from_numpy(500.0 * ((grid**2).sum(0) < 0.5)).float()[None, None]
    mask = torch.zeros(1, 24, 1, dtype=torch.bool)
    mask[:, ::2] = mask[:, 7:17] = True
    y = gaussian_noise(CartesianMRI(mask, simulate_maps(4, shape))(x), 3.0, torch.Generator().manual_seed(0))
    (tmp_path / "kspace").mkdir()
    path = tmp_path / "kspace" / "scan.h5"
    write_raw(make_raw((y * mask)[0].numpy(), path, "voxscore", mask.numpy(), affine=affine), path)
    return path.parent


@those_that_reconstruct
def test_bundle_run_reconstructs_what_voxscore_does(bundle, kspace, tmp_path):
    run_inference(bundle, kspace, tmp_path / "out", steps=3, samples=2)
    found = Reconstructor(bundle, CPU, steps=3)(read_measurement(kspace / "scan.h5"), samples=2)
    for kind in ("mean", "sd"):
        theirs = nib.load(tmp_path / "out" / f"scan_{kind}.nii.gz")
        scale = np.abs(found.mean).max()
        np.testing.assert_allclose(np.asarray(theirs.dataobj), getattr(found, kind), atol=1e-4 * scale)
        np.testing.assert_allclose(theirs.affine, found.affine)


def run_evaluation(bundle, data, output):
    run(
        config_file=[str(bundle.config(name)) for name in ("train", "evaluate")],
        bundle_root=str(bundle.root),
        output_dir=str(output),
        device="$torch.device('cpu')",
        **data,
    )


@those_that_train
def test_trains_and_evaluates_under_monai(bundle, training_data, tmp_path):
    given = sizes(config(bundle, "train"))
    small = {"network_def#channels": [8, 8, 8], **{k: [16] * 3 if isinstance(v, list) else 8 for k, v in given.items()}}
    run(
        config_file=str(bundle.config("train")),
        bundle_root=str(bundle.root),
        output_dir=str(tmp_path),
        device="$torch.device('cpu')",
        progress="$[]",
        max_epochs=2,
        val_interval=1,
        batch_size=4,
        **small,
        **training_data,
    )
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert ("psnr" if reconstructs(bundle) else "dice") in rows[-1]
    run_evaluation(bundle, training_data, tmp_path / "evaluated")
    assert (tmp_path / "evaluated" / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("bundle", "file"),
    [
        pytest.param(b, file, id=f"{b.name}-{Path(file).stem}")
        for b in BUNDLES
        for file in b.metadata["weights_sha256"]
        if file.endswith(".pt")
    ],
)
@pytest.mark.parametrize("spoil", ["missing", "corrupt"])
def test_no_weights_no_result(copied, bundle, file, dataset, kspace, tmp_path, spoil):
    """MONAI alone would run on random weights, with exit code 0."""
    path = copied.root / file
    if spoil == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=rf"{path.name}: the weights are"):
        opened(copied)
    if file == "models/gaussian.pt" and not synthesizes(bundle):
        return  # it is for samples, which this bundle's run does not draw
    with pytest.raises(RuntimeError):
        run_inference(copied, kspace if reconstructs(bundle) else dataset / "images", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@those_that_train
def test_no_weights_no_evaluation(copied, bundle, training_data, tmp_path):
    (copied.root / "models/model.pt").unlink()
    with pytest.raises(RuntimeError):
        run_evaluation(copied, training_data, tmp_path / "out")
    assert not (tmp_path / "out/metrics.csv").exists()
