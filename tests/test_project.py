"""What holds of the repository as a whole: what is imported is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.conftest import SLOW, TESTS

PROJECT = Path(__file__).parents[1]
PACKAGES = ("server", "tools", "omnigen2", "storage")


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Names of the distributions that the packages depend on, without extras."""
    described = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements: list[str] = described["project"]["dependencies"]
    return {normalized(re.split(r"[<>=!~;\[ ]", requirement)[0]) for requirement in requirements}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_the_packages_import_exactly_the_distributions_they_declare() -> None:
    own = {*PACKAGES, *sys.stdlib_module_names}
    distributions = packages_distributions()
    used = {
        normalized(distributions[name][0])
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*.py")
        for name in imported(path)
        if name not in own
    }
    assert used == declared()


def test_every_slow_file_is_there() -> None:
    assert [name for name in SLOW if not (TESTS / name).exists()] == []
