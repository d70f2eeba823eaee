"""Shared data: small labelled volumes and awkward geometry made here, so that no test needs a download."""

import datetime
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.utils import set_determinism
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from voxscore.bundles import find_bundle
from voxscore.diffusion import Gaussian
from voxscore.networks import JointScoreUNet, ScoreUNet
from voxscore.volumes import sha256

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: more threads would only wait for each other
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def same_seeds():
    """A recipe that trained earlier in the process has seeded MONAI, of which a later test should not hear."""
    set_determinism(0)


def labelled_crop(seed, shape=(20, 24, 18)):
    """A bright ellipsoid in noise; its anterior half is label 1, its posterior half label 2."""
    rng = np.random.default_rng(seed)
    center = np.array(shape) / 2 + rng.uniform(-1, 1, 3)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    inside = (((grid - center) / (np.array(shape) / 4)) ** 2).sum(-1) < 1
    label = np.where(inside, np.where(grid[..., 1] > center[1], 1, 2), 0).astype(np.uint8)
    image = rng.normal(100, 10, shape) + 80 * (label == 1) + 50 * (label == 2)
    return image.astype(np.float32), label


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A folder with images/ and labels/ of ten cases."""
    root = tmp_path_factory.mktemp("dataset")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for i in range(10):
        for kind, array in zip(("images", "labels"), labelled_crop(i), strict=True):
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / kind / f"case_{i:02d}.nii.gz")
    return root


def rotation():
    """A rotation about no axis in particular."""
    q, _ = np.linalg.qr(np.array([[1.0, 0.2, -0.3], [0.1, 0.9, 0.4], [0.35, -0.25, 0.8]]))
    return q * np.sign(np.linalg.det(q))


def _affines():
    sizes = np.diag([0.7, 1.1, 3.3])
    origin = np.array([1 / 3, -np.pi, 70 / 9])
    permuted = np.eye(3)[[2, 0, 1]]
    matrices = {
        "RAS": sizes,
        "LPS": np.diag([-1, -1, 1]) @ sizes,
        "negative-determinant": np.diag([-1, 1, 1]) @ sizes,
        "permuted": permuted @ sizes,
        "permuted-and-mirrored": permuted @ np.diag([1, -1, 1]) @ sizes,
        "oblique": rotation() @ sizes,
        "oblique-and-mirrored": rotation() @ np.diag([1, 1, -1]) @ sizes,
        "sheared": rotation() @ np.array([[1, 0, 0.2], [0, 1, 0], [0, 0, 1]]) @ sizes,
    }
    for name, matrix in matrices.items():
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = matrix, origin
        yield pytest.param(affine, id=name)


@pytest.fixture(params=_affines())
def affine(request):
    """(4, 4) voxel index to RAS mm, in double precision."""
    return request.param


@pytest.fixture
def oblique():
    """One oblique, anisotropic affine to RAS mm."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation() @ np.diag([0.7, 1.1, 3.3]), (12.5, -31.25, 8.0)
    return affine


@pytest.fixture
def save_nifti(tmp_path):
    """save_nifti(array, affine, name) -> path."""

    def save(array, affine, name="case.nii.gz", image=nib.Nifti1Image):
        path = tmp_path / name
        image(array, affine).to_filename(path)
        return path

    return save


@pytest.fixture
def save_series(tmp_path, oblique):
    """save_series(array (X, Y, Z), ...) -> folder of one DICOM file per slice, file names in random order."""

    def save(array, folder="series", affine=oblique, number=3, order=None, change=None, uid=None):
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        directions = lps[:3, :3] / spacing
        series, study, frame = uid or generate_uid(), generate_uid(), generate_uid()
        names = np.random.default_rng(1).permutation(array.shape[2])
        for k in range(array.shape[2]):
            slice_ = Dataset()
            slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, generate_uid()
            slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = (
                study,
                series,
                frame,
            )
            slice_.PatientName, slice_.PatientID = "Secret^Name", "SECRET-ID"
            slice_.StudyDate = slice_.ContentDate = datetime.date(2020, 1, 2).strftime("%Y%m%d")
            slice_.StudyTime = slice_.ContentTime = "101112"
            slice_.Modality, slice_.SeriesNumber, slice_.InstanceNumber = "MR", number, int(names[k]) + 1
            slice_.SeriesDescription = "Secret^Name T1"
            slice_.ImageType = ["ORIGINAL", "PRIMARY"]
            slice_.ImagePositionPatient = [f"{v:.9f}" for v in (lps @ [0, 0, k, 1])[:3]]
            slice_.ImageOrientationPatient = [f"{v:.9f}" for v in directions[:, :2].T.ravel()]
            slice_.PixelSpacing = [f"{spacing[1]:.9f}", f"{spacing[0]:.9f}"]
            slice_.SliceThickness = f"{spacing[2]:.9f}"
            slice_.Columns, slice_.Rows = array.shape[:2]
            slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
            slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
            slice_.PixelRepresentation = 0
            slice_.RescaleSlope, slice_.RescaleIntercept = "2", "-10"
            slice_.PixelData = np.ascontiguousarray(array[:, :, k].T).astype("<u2").tobytes()
            slice_.file_meta = FileMetaDataset()
            slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            if change is not None:
                change(slice_, k)
            slice_.save_as(target / f"IM{names[k]:03d}", enforce_file_format=True)
        return target

    return save


@pytest.fixture(scope="session")
def gaussian_reconstruction(tmp_path_factory):
    """The reconstruction bundle with a small network that predicts 0.

    What remains of an EDM denoiser is sigma_d^2 / (sigma^2 + sigma_d^2) x: exactly that of white noise of standard
    deviation sigma_d = 0.5, for which every posterior is known.
    """
    root = tmp_path_factory.mktemp("bundles") / "gaussian_reconstruction"
    shutil.copytree(find_bundle("brain_mri_reconstruction").root, root, ignore=shutil.ignore_patterns("models"))
    config = json.loads((root / "configs/inference.json").read_text())
    config["network_def"]["channels"] = [8, 8]
    config |= {"steps": 6, "samples": 2, "window": None}
    config["inferer"]["full_precision"] = True
    (root / "configs/inference.json").write_text(json.dumps(config))
    network = ScoreUNet(**{k: v for k, v in config["network_def"].items() if k != "_target_"})
    for parameter in network.head.parameters():
        torch.nn.init.zeros_(parameter)
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models/model.pt")
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["weights_sha256"] = {"models/model.pt": sha256(root / "models/model.pt")}
    del metadata["voxel_spacing_mm"]  # it knows any
    (root / "configs/metadata.json").write_text(json.dumps(metadata))
    return root


@pytest.fixture(scope="session")
def tiny_synthesis(tmp_path_factory):
    """The synthesis bundle with small random weights and a small Gaussian: volumes of 12 x 20 x 14."""
    root = tmp_path_factory.mktemp("bundles") / "tiny_synthesis"
    shutil.copytree(find_bundle("hippocampus_synthesis").root, root, ignore=shutil.ignore_patterns("models"))
    config = json.loads((root / "configs/inference.json").read_text())
    config["network_def"] |= {"channels": [8, 8, 8], "correlations": len(config["correlation_widths"])}
    config |= {"size": [20, 24, 20], "field_of_view": [12, 20, 14], "steps": 4}
    for inferer in ("inferer", "conditional"):
        config[inferer]["full_precision"] = True
    (root / "configs/inference.json").write_text(json.dumps(config))
    (root / "models").mkdir()
    arguments = {k: v for k, v in config["network_def"].items() if k != "_target_"}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = JointScoreUNet(**arguments)
        torch.nn.init.normal_(network.head[-1].weight)  # it starts at zero and would have nothing to say
        gaussian = Gaussian.fit(torch.randn(8, 4, *config["size"]), "fourier")
    torch.save(network.state_dict(), root / "models/model.pt")
    torch.save(gaussian.state_dict(), root / "models/gaussian.pt")
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["weights_sha256"] = {f"models/{n}": sha256(root / "models" / n) for n in ("model.pt", "gaussian.pt")}
    (root / "configs/metadata.json").write_text(json.dumps(metadata))
    return root
