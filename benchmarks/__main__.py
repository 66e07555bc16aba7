"""Run benchmarks one after another, by default those that finish within minutes on any machine.

    python -m benchmarks [NAME ...]
    python -m benchmarks --help

Each benchmark is a module of this folder and takes its own options: `python -m benchmarks.NAME --help`.
"""

import argparse
import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
QUICK = {"weights": [], "startup": [], "overhead": ["nano", "0", "20"], "store": ["--images", "2000"]}
"""Benchmarks of the default run, with arguments that keep each under two minutes."""


def summaries() -> dict[str, str]:
    """First line of the docstring of every benchmark, by name."""
    texts = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("[!_]*.py"))}
    return {
        name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        for name, text in texts.items()
        if '__name__ == "__main__"' in text  # the others are parts of these
    }


def main() -> int:
    """Run the named benchmarks; exit code 1 if one of them fails."""
    known = summaries()
    listed = "\n".join(f"  {name:14}{summary}" for name, summary in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Run benchmarks one after another.\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", help=f"which ones; default: {' '.join(QUICK)}")
    names: list[str] = parser.parse_args().name or list(QUICK)
    for name in names:
        if name not in known:
            parser.error(f"name: there is no benchmark {name!r}; there are {', '.join(known)}")
    failed: list[str] = []
    for name in names:
        print(f"== {name}: {known[name]}", flush=True)
        if subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *QUICK.get(name, [])], check=False
        ).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
