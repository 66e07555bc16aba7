"""What holds of the repository as a whole: imports are declared, files stay short, its pages are right."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import SLOW, TESTS

PROJECT = Path(__file__).parents[1]
PACKAGES = ("server", "tools", "omnigen2", "storage")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "examples", "docs", "packaging", ".ci")
PAGES = (
    *("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "CHANGELOG.md"),
    *("docs/plugins.md", "docs/operating.md", "docs/capacity.md"),
)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Names of the distributions that the packages depend on, without extras."""
    described = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    requirements: list[str] = described["project"]["dependencies"]
    return {normalized(re.split(r"[<>=!~;\[ ]", requirement)[0]) for requirement in requirements}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((PROJECT / folder).rglob("*.py"))]


def test_the_packages_import_exactly_the_distributions_they_declare() -> None:
    own = {*PACKAGES, *sys.stdlib_module_names}
    distributions = packages_distributions()
    names = {name for path in sources(*PACKAGES) for name in imported(path)} - own
    assert {normalized(distributions[name][0]) for name in names} == declared()


def test_every_slow_file_is_there() -> None:
    assert [name for name in SLOW if not (TESTS / name).exists()] == []


# -- pages --------------------------------------------------------------------------------------------


def prose(page: str) -> str:
    """A page without its blocks of code."""
    text = (PROJECT / page).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def cited(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def is_path(words: str) -> bool:
    """Whether it names a file or folder of this repository, rather than a command, a route or a pattern."""
    if words.split("/")[0] in FOLDERS:
        return "/" in words and " " not in words
    return re.fullmatch(r"[A-Z]+\.md|pyproject\.toml|constraints\.txt", words) is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = prose(page)
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert [path for path in cited(text) if is_path(path) and not (PROJECT / path).exists()] == []
    assert [link for link in links if not (PROJECT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_exists(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    targets = set(
        re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) - targets == set()


def words_of(path: Path) -> set[str]:
    """The identifiers in a module's code, and the strings that look like one; all words of any other file."""
    if not path.is_file():
        return set()
    if path.suffix != ".py":
        return set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    fields = ("name", "id", "attr", "arg", "asname", "value")
    values = (getattr(node, field, None) for node in ast.walk(parsed(path)) for field in fields)
    return {value for value in values if isinstance(value, str) and value.isidentifier()}


def test_every_name_in_the_architecture_stands_in_a_file_named_beside_it() -> None:
    wrong: list[str] = []
    for paragraph in re.split(r"\n(?=- |\d+\. |\||\n)", prose("ARCHITECTURE.md")):
        words = cited(paragraph)
        known = set[str]().union(*(words_of(PROJECT / path) for path in words if is_path(path)))
        names = [name for name in words if re.fullmatch(r"[A-Za-z_][\w.]*", name) and not is_path(name)]
        wrong += [name for name in names if not known.issuperset(name.split("."))]
    assert wrong == []


# -- size ---------------------------------------------------------------------------------------------


def test_no_file_has_over_400_lines_and_no_function_over_60() -> None:
    long: list[str] = []
    for path in sources(*PACKAGES, "benchmarks"):
        if len(path.read_text(encoding="utf-8").splitlines()) > 400:
            long.append(path.name)
        long += [
            f"{path.name}: {node.name}"
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or 0) - node.lineno >= 60
        ]
    assert long == []
