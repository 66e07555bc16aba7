"""The Dockerfile and what starts it: linted, valid by the published schemas, and of one mind with the code.

`python -m benchmarks.containers` builds and runs the images; that takes minutes, and rights a test has not.
"""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from server.settings import Settings

PROJECT = Path(__file__).parents[1]


def dockerfile() -> str:
    return (PROJECT / "Dockerfile").read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "compose.yaml").read_text(encoding="utf-8"))


def test_the_dockerfile_passes_hadolint() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed: its package has no build for this system")
    ran = subprocess.run([program, "Dockerfile"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (ran.stdout + ran.stderr, ran.returncode) == ("", 0)


def test_compose_is_valid_by_the_published_schema() -> None:
    published = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(compose(), json.loads(published.read_text(encoding="utf-8")))


def test_every_variable_of_the_image_is_a_setting_or_the_folder_of_models() -> None:
    named = re.findall(r"OMNIGEN2_(\w+)=", dockerfile())
    assert named and {name.lower() for name in named} <= {*Settings.model_fields, "models"}


def test_what_is_copied_is_let_through_and_holds_the_packages() -> None:
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and [name for name in let_through if not (PROJECT / name).exists()] == []
    assert {"server", "tools", "omnigen2", "storage", "constraints.txt", "pyproject.toml"} <= let_through


def test_compose_builds_targets_of_the_dockerfile_and_keeps_its_volumes() -> None:
    stages = set(re.findall(r"^FROM .+ AS (\S+)$", dockerfile(), re.MULTILINE))
    kept = set(re.findall(r'"(/data/\w+)"', dockerfile()))
    assert kept == {"/data/store", "/data/models"}
    for service in compose()["services"].values():
        assert service["build"]["target"] in stages
        assert {volume.partition(":")[2] for volume in service["volumes"]} == kept
        assert {given.partition("=")[0] for given in service["build"]["args"]} <= set(
            re.findall(r"^ARG (\w+)", dockerfile(), re.MULTILINE)
        )


def test_no_file_names_the_host_of_a_registry() -> None:
    texts = [dockerfile(), (PROJECT / "compose.yaml").read_text(encoding="utf-8")]
    assert [host for text in texts for host in re.findall(r"https?://[^'\s]+", text)] == [
        "http://127.0.0.1:8765/healthz"
    ]


def test_the_manifest_for_kubernetes_has_only_fields_that_kuberay_and_the_server_know() -> None:
    text = (PROJECT / "packaging/kuberay.yaml").read_text(encoding="utf-8")
    documents = {one["kind"]: one for one in yaml.safe_load_all(text)}
    schema = json.loads((PROJECT / "tests/data/kuberay/raycluster.json").read_text(encoding="utf-8"))
    jsonschema.validate(documents["RayCluster"], schema)
    pod = documents["Deployment"]["spec"]["template"]
    jsonschema.validate(pod, schema["$defs"]["podTemplate"])
    named = {name.removeprefix("OMNIGEN2_").lower() for name in documents["ConfigMap"]["data"]}
    assert named <= set(Settings.model_fields)
    pinned = re.search(r"^ray==(.+)$", (PROJECT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned and documents["RayCluster"]["spec"]["rayVersion"] == pinned[1]


@pytest.mark.parametrize("instruction", ["USER 1000:1000", "HEALTHCHECK", 'ENTRYPOINT ["omnigen2-mcp"]'])
def test_every_image_has(instruction: str) -> None:
    # Both images are made of the stage that ends with these.
    common = dockerfile().partition("AS studio\n")[2].partition("\nFROM")[0]
    assert instruction in common
