"""The workflows are what a release needs: every system, no secret, and the checks of `.ci/run`."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def workflow(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    return parsed


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_knows_no_secret(path: Path) -> None:
    assert workflow(path.name)["permissions"] == {"contents": "read"}
    assert not re.search(r"secrets\.|password|token:(?! write)", path.read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_whole(path: Path) -> None:
    jobs = workflow(path.name)["jobs"]
    for job in jobs.values():
        needed = job.get("needs", [])
        assert set(needed) <= set(jobs)
        matrix = job.get("strategy", {}).get("matrix", {})
        names = set(matrix) | {key for row in matrix.get("include", []) for key in row}
        text = yaml.safe_dump(job)
        assert set(re.findall(r"matrix\.(\w+)", text)) <= names
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "@" in step.get("uses", "@")


def test_a_change_must_pass_what_ci_run_runs() -> None:
    jobs = workflow("ci.yml")["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["linux"]["steps"]]
    systems = jobs["elsewhere"]["strategy"]["matrix"]["system"]
    assert {system.split("-")[0] for system in systems} == {"macos", "windows", "ubuntu"}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_a_release_has_a_wheel_for_every_system_and_the_sources() -> None:
    jobs = workflow("release.yml")["jobs"]
    rows = jobs["wheels"]["strategy"]["matrix"]["include"]
    assert {row["target"] for row in rows} == {
        "x86_64-unknown-linux-gnu",
        "aarch64-unknown-linux-gnu",
        "x86_64-apple-darwin",
        "aarch64-apple-darwin",
        "x86_64-pc-windows-msvc",
    }
    # Linux wheels run on other distributions too.
    assert all(row.get("manylinux") for row in rows if "linux" in row["target"])
    assert set(jobs["publish"]["needs"]) == {"sdist", "wheels"}


def test_a_release_is_published_from_a_tag_by_trust_alone() -> None:
    release = workflow("release.yml")
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "pypi"
    assert "refs/tags/v" in publish["if"]
    assert "with" not in publish["steps"][-1]
    # YAML 1.1 takes the word `on` for true.
    assert release[True]["push"] == {"tags": ["v*"]}
