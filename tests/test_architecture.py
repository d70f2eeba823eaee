"""The direction of imports, and what may not be in a bundle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "voxscore"

# A part may import the parts named here, itself and voxscore.errors; nothing else of voxscore.
ALLOWED = {
    "errors": set(),
    "networks": set(),
    "diffusion": set(),
    "measurement": set(),
    "volumes": set(),
    "deidentify": {"volumes"},
    "transforms": {"deidentify", "measurement", "volumes"},
    "bundles": {"volumes"},
    "inferers": {"networks", "diffusion", "measurement"},
    "evaluation": set(),
    "posterior": {"evaluation"},
    "inference": {"bundles"},
    "memory": set(),
    "measured": {"measurement", "transforms", "volumes"},
    "reconstruction": {
        *("bundles", "diffusion", "evaluation", "inference", "inferers", "measured", "measurement", "memory"),
        "volumes",
    },
    "segmentation": {"bundles", "evaluation", "inference", "inferers", "posterior", "volumes"},
    "synthesis": {"bundles", "evaluation", "inference", "inferers", "volumes"},
    "audit": {"bundles", "diffusion", "evaluation", "inference", "inferers", "volumes"},
    "training": {"bundles", "diffusion", "networks", "volumes"},
    "cli": None,  # the top: reaches everything through the lazy names of `import voxscore`
    "__init__": None,
    "__main__": {"cli"},
}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def first_party_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "voxscore":
            yield node, (node.module.split(".") + [a.name for a in node.names])[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "voxscore":
                    yield node, [*alias.name.split("."), ""][1]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    assert part in ALLOWED, f"say in ALLOWED what {part} may import"
    tree = ast.parse(path.read_text())
    if ALLOWED[part] is not None:
        imported = {target for _, target in first_party_imports(tree)}
        assert imported <= ALLOWED[part] | {part, "errors"}
    assert not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree)), "absolute imports only"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_first_party_import_inside_a_function(path):
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [node.lineno for f in functions for node, _ in first_party_imports(f)] == []


MATHEMATICS = sorted(path for part in ("diffusion", "measurement") for path in (PACKAGE / part).glob("*.py"))


@pytest.mark.parametrize("path", MATHEMATICS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_mathematics_imports_torch_alone(path):
    tree = ast.parse(path.read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    foreign = {module.split(".")[0] for module in modules} - {"torch", "voxscore", *sys.stdlib_module_names}
    assert foreign == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text)), "the first lines say what the file is for"


@pytest.mark.parametrize("arguments", [["-c", "import voxscore"], ["-m", "voxscore", "--help"]])
def test_start_up_loads_neither_torch_nor_monai(arguments):
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "voxscore" in loaded
    assert not loaded & {"torch", "monai", "numpy.random", "nibabel"}


def test_lazy_names_exist():
    code = "import voxscore; [getattr(voxscore, name) for name in dir(voxscore)]"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bundles_hold_no_python():
    assert [str(p) for p in (ROOT / "plugins").rglob("*.py")] == []
