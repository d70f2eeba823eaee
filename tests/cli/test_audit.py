"""`voxscore audit`: folders in; verdict, exit code and JSON out."""

import json
import re
from functools import partial

import nibabel as nib
import numpy as np
import pytest

import voxscore
from voxscore.evaluation import planted_copy, train_encoder

SHAPE = (20, 24, 20)


def person(seed):
    """One anatomy with a texture of one's own, and its label map: two parts of a ball."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    square = sum(a**2 for a in axes)
    spectrum = np.fft.rfftn(rng.normal(size=SHAPE), axes=(0, 1, 2))
    frequency = np.meshgrid(*map(np.fft.fftfreq, SHAPE[:2]), np.fft.rfftfreq(SHAPE[2]), indexing="ij")
    texture = np.fft.irfftn(spectrum * np.exp(-15 * sum(f**2 for f in frequency)), s=SHAPE, axes=(0, 1, 2))
    image = 100 * (2 * np.exp(-2 * square) + texture / texture.std()) + 500
    inside, front = square < rng.uniform(0.2, 0.6), axes[1] + 0.3 * axes[0] > rng.uniform(-0.2, 0.2)
    return image.astype(np.float32), np.where(inside, np.where(front, 1, 2), 0).astype(np.uint8)


def save(folder, people, layout=("images", "labels")):
    for name, pair in people.items():
        for kind, array in zip(layout, pair, strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / kind / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """24 training, 20 held-out and 12 other people."""
    root = tmp_path_factory.mktemp("people")
    save(root / "training", {f"train_{k:02d}": person(k) for k in range(24)})
    save(root / "held_out", {f"held_{k:02d}": person(100 + k) for k in range(20)})
    save(root / "strangers", {f"new_{k:02d}": person(200 + k) for k in range(12)}, ("imagesTr", "labelsTr"))
    rng = np.random.default_rng(0)
    copied = {f"new_{k:02d}": person(200 + k) for k in range(8)}
    for k in (3, 17):
        image, label = person(k)
        copied[f"copy_{k}"] = (planted_copy(image, rng), label)
    save(root / "copied", copied)
    return root


@pytest.fixture(scope="module", autouse=True)
def quick_encoder():
    """What it learns is not asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voxscore.audit, "train_encoder", partial(train_encoder, steps=20))
        yield


@pytest.fixture
def audit(run, people, tmp_path):
    """audit(synthetic, *arguments) -> exit code, stdout, stderr and what was written."""

    def audit(synthetic, *arguments):
        out = tmp_path / "audit.json"
        sets = ["--training", people / "training", "--held-out", people / "held_out"]
        result = run("audit", "--synthetic", synthetic, *sets, "--json", out, *arguments)
        return *result, json.loads(out.read_text()) if out.exists() else None

    return audit


@pytest.fixture(scope="module")
def strangers(people):
    """The audit of volumes that are no copies, as JSON has it."""
    found = voxscore.audit.audit(people / "strangers", people / "training", people / "held_out")
    return json.loads(json.dumps(found.content(), allow_nan=False))


def test_strangers(strangers):
    """No copies are found; with so few volumes that is not enough for a PASS."""
    assert strangers["verdict"] == "INCONCLUSIVE"
    verdicts = {finding["test"]: finding["verdict"] for finding in strangers["findings"]}
    assert {test for test, verdict in verdicts.items() if verdict != "PASS"} == {"size"}
    measure = strangers["measures"]["registered correlation"]
    assert measure["planted"]["found"] == measure["planted"]["number"] == 24
    assert [v["name"] for v in measure["volumes"]] == [f"new_{k:02d}" for k in range(12)]
    assert max(v["likeness"] for v in measure["volumes"]) < measure["copy_level"]
    assert strangers["settings"]["number"] == {"synthetic": 12, "training": 24, "held_out": 20}
    assert [group["training"] for group in strangers["groups"]] == [8] * 9
    for k in (0, 3, 6):
        assert sum(group["synthetic"] for group in strangers["groups"][k : k + 3]) == 12


def test_a_plain_folder_does(audit, people, strangers):
    """Without label maps there are no groups, and nothing else changes."""
    code, stdout, _, found = audit(people / "strangers" / "imagesTr")
    assert code == 3
    assert found == strangers | {"groups": []}
    assert "INCONCLUSIVE. A PASS is evidence" in stdout
    assert "not differential privacy" in stdout


def test_copies_fail_and_are_named_with_their_source(audit, people, tmp_path):
    code, stdout, _, found = audit(people / "copied", "--report")
    assert (code, found["verdict"]) == (1, "FAIL")
    volumes = found["measures"]["registered correlation"]["volumes"]
    assert {v["name"]: v["nearest_training"] for v in volumes if v["copy"]} == {
        "copy_3": "train_03",
        "copy_17": "train_17",
    }
    assert {"copy_3", "copy_17"} <= set(found["refused"])
    assert f"{len(found['refused'])} volumes are not to be released" in stdout
    page = (tmp_path / "audit.html").read_text()
    assert "<h2>FAIL</h2>" in page
    pairs = re.findall(r"<h2>(\w+) and training volume (\w+)</h2>", page)
    assert set(pairs[:2]) == {("copy_3", "train_03"), ("copy_17", "train_17")}
    assert page.count("<img ") == len(pairs) == 10
    assert "not differential privacy" in page


@pytest.mark.parametrize("name", ["audit.json", "audit.html"])
def test_an_output_is_kept(audit, people, tmp_path, name):
    (tmp_path / name).write_text("{}")
    code, stdout, stderr, _ = audit(people / "strangers", "--report")
    assert (code, stdout) == (2, "")
    assert f"{name}: exists already" in stderr
    assert (tmp_path / name).read_text() == "{}"


def test_what_cannot_be_audited(run, people, tmp_path):
    def refusal(synthetic, training, held_out):
        folders = ["--synthetic", synthetic, "--training", training, "--held-out", held_out]
        code, stdout, stderr = run("audit", *folders, "--json", tmp_path / "a.json")
        assert (code, stdout) == (2, "")
        assert not (tmp_path / "a.json").exists()
        return stderr

    training, held_out, strangers = (people / name for name in ("training", "held_out", "strangers"))
    assert "shares 24 volumes with" in refusal(strangers, training, training)
    assert "no such file or folder" in refusal(tmp_path / "absent", training, held_out)
    (tmp_path / "empty").mkdir()
    assert "holds no volumes that voxscore reads" in refusal(strangers, tmp_path / "empty", held_out)
    save(tmp_path / "one", {"only": person(0)})
    assert "holds one volume" in refusal(strangers, tmp_path / "one", held_out)
