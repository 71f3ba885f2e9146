"""The wheel works where there is no repository, no compiler and no torch."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import recast
from support import files, stored, tree

ROOT = Path(__file__).parents[1]

# In one group: the wheel is built once.
pytestmark = [
    pytest.mark.package,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("package"),
    pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # The directory `make build` uses, so that only what changed is compiled.
    places = ["--target-dir", str(ROOT / "target" / "python"), "--out", str(out)]
    command = [sys.executable, "-m", "maturin", "build", "--release", *places]
    result = subprocess.run(
        [*command, "--interpreter", sys.executable],
        cwd=ROOT,
        env={**os.environ, "PYO3_PYTHON": str(ROOT / ".venv" / "bin" / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    out = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "maturin", "sdist", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (packed,) = out.glob("*.tar.gz")
    subprocess.run(["tar", "-xf", packed, "-C", out], check=True)
    return out / packed.name.removesuffix(".tar.gz")


def required(lines: list[str]) -> set[str]:
    """The names a package needs, extras aside."""
    plain = [line for line in lines if "extra ==" not in line]
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in plain}


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, what it says it needs, and no more."""
    place = tmp_path_factory.mktemp("elsewhere") / "env"
    venv.create(place, with_pip=False, symlinks=True)
    interpreter = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = ["--python", str(interpreter), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    (packages,) = (place / "lib").glob("python*/site-packages")
    (metadata,) = packages.glob("recast_weights-*/METADATA")
    missing = required(Parser().parsestr(metadata.read_text()).get_all("Requires-Dist") or [])
    linked: set[str] = set()
    while missing - linked:
        name = min(missing - linked)
        linked.add(name)
        found = importlib.metadata.distribution(name)
        missing |= required(found.requires or [])
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(found.locate_file(top)))
    assert "torch" not in linked
    return interpreter


def test_one_wheel_serves_every_python_from_3_11(wheel: Path) -> None:
    assert re.fullmatch(r"recast_weights-[\d.]+-cp311-abi3-\w+\.whl", wheel.name)


def test_the_wheel_holds_the_package_its_types_and_its_license_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {
        str(path.relative_to(ROOT / "python" / "recast"))
        for path in (ROOT / "python" / "recast").rglob("*.py*")
        if path.suffix in (".py", ".pyi")
    }
    inside = {name for name in names if name.startswith("recast/")}
    data = {"recast/_core.abi3.so", "recast/py.typed"}
    assert inside == {f"recast/{name}" for name in sources} | data
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} <= {"recast", "recast_weights"}


def test_the_sdist_holds_the_sources_and_the_license_and_no_more(sdist: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "src", "python"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {"Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "pyproject.toml"}
    assert files(sdist) == set(tracked.stdout.splitlines()) | top | {"PKG-INFO"}


def test_the_sdist_compiles(sdist: Path) -> None:
    # `make dist` builds the wheel from it; that takes a minute.
    command = ["cargo", "check", "--quiet", "--locked", "--features", "python"]
    interpreter = str(ROOT / ".venv" / "bin" / "python")
    target = str(ROOT / "target" / "sdist")
    env = {**os.environ, "PYO3_PYTHON": interpreter, "CARGO_TARGET_DIR": target}
    result = subprocess.run(
        command, cwd=sdist, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_version_is_written_in_one_place(wheel: Path, sdist: Path) -> None:
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    assert recast.__version__ == cargo
    assert wheel.name.split("-")[1] == cargo
    assert sdist.name == f"recast_weights-{cargo}"
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]
    assert f"## [{cargo}]" in (ROOT / "CHANGELOG.md").read_text()


def run(python: Path, cwd: Path, *arguments: object) -> str:
    command = [str(python), "-I", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_installed_command_converts_without_torch(
    python: Path, model: Path, tmp_path: Path
) -> None:
    before = tree(model)
    script = python.with_name("recast")
    arguments = ["convert", model, tmp_path / "out", "--to", "bf16", "--json"]
    report = json.loads(run(python, tmp_path, script, *arguments))
    assert report["tensors"] == {"cast": 1, "copied": 0, "kept": 0}
    assert stored(tmp_path / "out" / "model.safetensors")["layer.weight"][0] == "BF16"
    assert tree(model) == before


@pytest.mark.parametrize("start", ["script", "module"])
def test_the_installed_command_says_what_it_is_without_torch(
    start: str, python: Path, tmp_path: Path
) -> None:
    first = [python.with_name("recast")] if start == "script" else ["-m", "recast"]
    lines = run(python, tmp_path, *first, "--version").splitlines()
    assert lines[0] == f"recast {recast.__version__}"
    assert lines[2] == "torch  not installed"


def test_the_installed_package_casts_numpy_arrays_without_torch(
    python: Path, tmp_path: Path
) -> None:
    code = """
import importlib.util, ml_dtypes, numpy, recast, sys
assert importlib.util.find_spec("torch") is None
assert "site-packages" in recast.__file__ and sys.prefix in recast.__file__, recast.__file__
x = numpy.linspace(-3, 3, 1001, dtype=numpy.float32).reshape(7, 143)
for to, dtype in {"bf16": ml_dtypes.bfloat16, "fp16": numpy.float16}.items():
    y = recast.cast(x, to)
    assert y.dtype == dtype and y.tobytes() == x.astype(dtype).tobytes()
print("fine")
"""
    assert run(python, tmp_path, "-c", code) == "fine\n"
