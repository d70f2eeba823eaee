"""Every bundle in plugins/ works under every MONAI command, offline, on CPU, and says the truth about itself."""

import hashlib
import json
import shutil
from dataclasses import replace

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
from voxscore.segmentation import Segmenter
from voxscore.volumes import read_volume

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
        *("intended_use", "data_source", "labels", "weights_sha256", "field_of_view_mm", "eval_metrics"),
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

pytestmark = [pytestmark, pytest.mark.parametrize("bundle", BUNDLES, ids=lambda b: b.name)]


def config(bundle, name):
    return json.loads(bundle.config(name).read_text())


@pytest.fixture
def copied(bundle, tmp_path):
    shutil.copytree(bundle.root, tmp_path / bundle.name)
    return find_bundle(tmp_path / bundle.name)


def test_folder_is_complete(bundle):
    names = {str(p.relative_to(bundle.root)) for p in bundle.root.rglob("*") if p.is_file()}
    assert names == {
        *(f"configs/{n}" for n in ("metadata.json", "inference.json", "train.json", "evaluate.json")),
        *("configs/multi_gpu_train.json", "configs/logging.conf", "models/model.pt", "models/model.safetensors"),
        *("docs/README.md", "docs/mni152_hippocampi.png", "docs/data_license.txt", "LICENSE"),
    }
    assert sum((bundle.root / n).stat().st_size for n in names) < 60e6


def test_metadata(bundle):
    jsonschema.validate(bundle.metadata, METADATA)
    assert bundle.version in bundle.metadata["changelog"]
    classes = bundle.metadata["network_data_format"]["outputs"]["pred"]
    assert len(classes["channel_def"]) == classes["num_channels"]
    assert {str(v): label.name for v, label in bundle.labels.items()} == {
        k: v for k, v in classes["channel_def"].items() if k != "0"
    }


def test_weights_are_the_named_ones_and_tensors_only(bundle):
    for file, digest in bundle.metadata["weights_sha256"].items():
        assert hashlib.sha256((bundle.root / file).read_bytes()).hexdigest() == digest
    state = torch.load(bundle.root / "models/model.pt", weights_only=True)
    again = load_file(bundle.root / "models/model.safetensors")
    assert state.keys() == again.keys()
    assert all(torch.equal(state[k], again[k]) for k in state)


def test_training_and_inference_agree(bundle):
    """A bundle must be complete in itself, so the two files repeat each other; this keeps them equal."""
    train, inference = config(bundle, "train"), config(bundle, "inference")
    differ = ("squeeze_excitation", "deep_heads")
    plain = [{k: v for k, v in c["network_def"].items() if k not in differ} for c in (train, inference)]
    assert plain[0] == plain[1]
    assert inference["network_def"]["squeeze_excitation"] == train["squeeze_excitation"]

    def steps(transforms):
        loading = ("voxscore.transforms.LoadVolumed", "Flipd")
        return [
            {k: v for k, v in t.items() if k not in ("keys", "mode")}
            for t in transforms
            if t["_target_"] not in loading
        ]

    assert steps(train["preprocessing_transforms"]) == steps(inference["preprocessing"]["transforms"])
    assert train["validate"]["inferer"] == inference["inferer"]


@pytest.mark.parametrize("kind", ["inference", "train"])
def test_properties(bundle, dataset, kind):
    folder = dataset / "images" if kind == "inference" else dataset
    workflow = create_workflow(
        config_file=str(bundle.config(kind)),
        workflow_type=kind,
        bundle_root=str(bundle.root),
        dataset_dir=str(folder),
        logging_file=False,
    )
    assert workflow.check_properties() == []


def test_load(bundle):
    network = load(bundle.name, bundle_dir=str(bundle.root.parent), workflow_type="inference", device="cpu")
    state = torch.load(bundle.root / "models/model.pt", weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_verify_net_in_out(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle.root / "configs/metadata.json"),
        config_file=str(bundle.config("inference")),
        device="cpu",
    )


def test_exports(bundle, tmp_path):
    common = {
        "net_id": "network_def",
        "ckpt_file": str(bundle.root / "models/model.pt"),
        "meta_file": str(bundle.root / "configs/metadata.json"),
        "config_file": str(bundle.config("inference")),
        "input_shape": [1, 1, 16, 24, 16],
    }
    ckpt_export(filepath=str(tmp_path / "model.ts"), use_trace=True, **common)
    onnx_export(filepath=str(tmp_path / "model.onnx"), **common)
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    network = load(bundle.name, bundle_dir=str(bundle.root.parent), workflow_type="inference", device="cpu").eval()
    x = torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), network(x), rtol=1e-3, atol=1e-3)


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


@pytest.mark.parametrize("side", ["left", "right"])
def test_bundle_run_equals_voxscore_segment(bundle, dataset, tmp_path, side):
    (tmp_path / "one").mkdir()
    file = shutil.copy(dataset / "images" / "case_00.nii.gz", tmp_path / "one")
    run_inference(bundle, tmp_path / "one", tmp_path / "out", side=side)
    theirs = nib.load(tmp_path / "out" / "case_00_seg.nii.gz")
    ours = Segmenter(bundle, torch.device("cpu"), side)(read_volume(file))
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), ours.labels)
    np.testing.assert_array_equal(theirs.affine, nib.load(file).affine)


def test_sides_mirror_each_other(bundle, dataset, tmp_path):
    """The documented convention: the right structure is segmented as the mirror image of a left one."""
    volume = read_volume(dataset / "images" / "case_01.nii.gz")
    mirrored = replace(volume, array=volume.array[::-1].copy())
    left = Segmenter(bundle, torch.device("cpu"), "left")(volume)
    right = Segmenter(bundle, torch.device("cpu"), "right")(mirrored)
    np.testing.assert_allclose(right.probabilities[:, ::-1], left.probabilities, atol=1e-6)
    unmirrored = Segmenter(bundle, torch.device("cpu"), "left")(mirrored)
    assert np.abs(unmirrored.probabilities[:, ::-1] - left.probabilities).max() > 1e-3


def test_an_unknown_side_is_an_error(bundle, dataset, tmp_path):
    with pytest.raises(RuntimeError):
        run_inference(bundle, dataset / "images", tmp_path, side="Right")


def test_trains_and_evaluates_under_monai(bundle, dataset, tmp_path):
    files = {"config_file": str(bundle.config("train")), "bundle_root": str(bundle.root), "dataset_dir": str(dataset)}
    small = {"network_def#channels": [8, 8, 8], "device": "$torch.device('cpu')", "progress": "$[]"}
    run(**files, **small, output_dir=str(tmp_path), max_epochs=2, val_interval=1, batch_size=4)
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert "dice" in rows[-1]
    files["config_file"] = [str(bundle.config("train")), str(bundle.config("evaluate"))]
    run(**files, output_dir=str(tmp_path / "evaluated"), device="$torch.device('cpu')")
    assert (tmp_path / "evaluated" / "metrics.csv").is_file()


@pytest.mark.parametrize("spoil", ["missing", "corrupt"])
def test_no_weights_no_result(copied, bundle, dataset, tmp_path, spoil):
    """MONAI alone would run on random weights, with exit code 0."""
    file = copied.root / "models/model.pt"
    if spoil == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"model\.pt: the weights are"):
        Segmenter(copied, torch.device("cpu"))
    with pytest.raises(RuntimeError):
        run_inference(copied, dataset / "images", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.nii.gz"))
