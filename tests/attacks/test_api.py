"""schemathesis against the OpenAPI document: `benchmarks/api.py` with few requests, always the same."""

from pathlib import Path

from benchmarks.api import examine

EXAMPLES = 300


def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    run = examine(tmp_path, EXAMPLES, seed=1, phases="fuzzing")
    assert run.status == 0, run.output[-8000:]
    assert run.answers.total() > EXAMPLES / 2
