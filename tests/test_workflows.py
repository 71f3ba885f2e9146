"""What hosting needs is well-formed: workflows for every system, without a secret, and forms."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
# What GitHub draws, and what each must say.
FIELDS = {"markdown": "value", "textarea": "label", "input": "label"}


def workflow(name: str) -> dict[Any, Any]:
    parsed: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
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
    steps = "\n".join(step.get("run", "") for step in jobs["elsewhere"]["steps"])
    assert "cargo test" in steps
    assert "tests/smoke.py" in steps
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


@pytest.mark.parametrize("urls", [False, True])
@pytest.mark.parametrize("repository", [False, True])
def test_a_release_stops_while_it_does_not_say_where_the_repository_is(
    urls: bool, repository: bool, tmp_path: Path
) -> None:
    steps = workflow("release.yml")["jobs"]["sdist"]["steps"]
    (check,) = [step["run"] for step in steps if "project.urls" in step.get("run", "")]
    (tmp_path / "pyproject.toml").write_text("[project.urls]\nHomepage = ''\n" if urls else "#\n")
    (tmp_path / "Cargo.toml").write_text("repository = ''\n" if repository else "#\n")
    done = subprocess.run(["bash", "-c", check], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode == 0) == (urls and repository)


def test_the_metadata_points_to_no_place_that_does_not_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    places = [*project.get("urls", {}).values(), package.get("repository", "")]
    assert not any("OWNER" in place for place in places)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_for_issues_is_well_formed(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert form.keys() <= {"blank_issues_enabled", "contact_links"}
        return
    assert form.keys() == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    for field in form["body"]:
        assert field["attributes"][FIELDS[field["type"]]]
        assert field.keys() <= {"type", "id", "attributes", "validations"}


def test_the_smoke_test_passes_here() -> None:
    """What the workflows run on other systems."""
    smoke = ROOT / "tests" / "smoke.py"
    done = subprocess.run([sys.executable, smoke], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["fine"]), done.stderr


def test_the_constraints_pin_what_the_tests_lean_on() -> None:
    lines = (ROOT / "tests" / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    needed = project["project"]["dependencies"] + groups["dev"] + groups["models"]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in needed}
    assert names <= pinned
