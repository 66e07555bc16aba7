"""What `make setup` installs."""

import shutil
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def is_cuda(package: str) -> bool:
    return package.lower().startswith(("nvidia", "cuda", "triton", "pytorch-triton", "cupy"))


def test_constraints_name_no_cuda_packages() -> None:
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").split()
    assert any(line.startswith("torch==") for line in lines)
    assert [line for line in lines if is_cuda(line)] == []


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_no_cuda_packages_are_installed_without_a_gpu() -> None:
    names = [distribution.name for distribution in distributions()]
    assert "torch" in names
    assert [name for name in names if is_cuda(name)] == []


def test_every_installed_dependency_is_pinned() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").split()
    }
    tools_of_the_venv = {"pip", "setuptools", "wheel", "omnigen2-mcp"}
    places = [sysconfig.get_path("purelib")]  # Ray, once imported, adds a place of what it brings itself
    installed = {own.name.lower().replace("_", "-") for own in distributions(path=places)}
    assert installed - pinned - tools_of_the_venv == set()
