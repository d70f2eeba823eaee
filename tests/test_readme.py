"""What the README tells a newcomer to type works, and CI types the same."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code, dataset, tmp_path, monkeypatch):
    shutil.copy(dataset / "images" / "case_00.nii.gz", tmp_path / "crop.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    if "write_volume" in code:
        assert (tmp_path / "crop_seg.nii.gz").is_file()


def test_ci_runs_the_readmes_command():
    (command,) = (block.strip() for block in blocks("bash") if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_named_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
