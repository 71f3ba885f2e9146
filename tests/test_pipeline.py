"""examples/pipeline/: every file is read as its system reads it, and run where this machine can."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import recast
import yaml
from support import environment, heed_interrupts, raw_bytes, tree

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "examples" / "pipeline"
SCRIPT = PIPELINE / "convert.sh"
CODES = [0, 1, 2, 65, 73, 74, 130, 143]
BIN = Path(sys.executable).parent
# The files that tell their system what to run.
STEPS = ["github/action.yml", "github/workflow.yml", "Dockerfile", "kubernetes/job.yaml"]
STEPS += ["kubernetes/init-container.yaml", "kubernetes/kserve.yaml", "dvc/dvc.yaml"]
STEPS += ["make/convert.mk", "README.md"]


def shell(*command: object, cwd: Path, **changes: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command with the real `recast` in PATH."""
    env = environment(**{"PATH": f"{BIN}:{os.environ['PATH']}", "RECAST_WAIT": "0", **changes})
    words = list(map(str, command))
    return subprocess.run(
        words, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def parsed(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((PIPELINE / name).read_text()))


def stand_in(folder: Path, body: str) -> str:
    """A program that notes each call in `calls`, and then does what `body` says."""
    path = folder / "stand-in"
    path.write_text(f'#!/bin/sh\necho "$*" >> "{folder}/calls"\n{body}\n')
    path.chmod(0o755)
    return str(path)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("code", [*CODES, 137])
def test_the_script_passes_every_exit_code_on_and_says_what_to_do(
    code: int, tmp_path: Path
) -> None:
    recast_command = stand_in(tmp_path, f"exit {code}")
    result = shell(SCRIPT, "a b", "c", "--to", "bf16", cwd=tmp_path, RECAST=recast_command)
    assert result.returncode == code
    assert calls(tmp_path) == ["convert a b c --to bf16"] * (3 if code == 74 else 1)
    assert result.stdout == ""
    assert bool(result.stderr) == (code != 0)


def test_a_failed_write_is_tried_again_and_may_succeed(tmp_path: Path) -> None:
    body = f'[ "$(wc -l < "{tmp_path}/calls")" = 2 ] || exit 74'
    result = shell(SCRIPT, "a", "b", cwd=tmp_path, RECAST=stand_in(tmp_path, body))
    assert (result.returncode, len(calls(tmp_path))) == (0, 2)
    assert "attempt 1 of 3" in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("waiting", [False, True])
def test_a_signal_reaches_the_command_and_ends_the_script(
    number: signal.Signals, code: int, waiting: bool, tmp_path: Path
) -> None:
    body = "exit 74" if waiting else "trap 'exit 143' TERM; while :; do sleep 0.05; done"
    env = environment(RECAST=stand_in(tmp_path, body), RECAST_WAIT="30")
    process = subprocess.Popen(
        ["sh", str(SCRIPT), "a", "b"],
        stderr=subprocess.PIPE,
        env=env,
        text=True,
        preexec_fn=heed_interrupts,
    )
    while not (tmp_path / "calls").exists() and process.poll() is None:
        time.sleep(0.01)
    if waiting:
        assert process.stderr
        assert "trying again" in process.stderr.readline()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert len(calls(tmp_path)) == 1


def test_the_script_converts_and_ends_with_recasts_own_codes(model: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.safetensors"
    large.write_bytes(raw_bytes([("w", "F32", [1], b"\x00\x00\x7f\x7f")]))
    for code, arguments in [
        (0, ["model", "out", "--to", "bf16"]),
        (0, ["model", "out", "--to", "bf16"]),
        (1, ["large.safetensors", "other", "--to", "fp16"]),
        (2, ["model", "other"]),
        (65, ["nowhere", "other", "--to", "bf16"]),
        (73, ["model", "out", "--to", "fp16"]),
    ]:
        result = shell(SCRIPT, *arguments, cwd=tmp_path)
        assert result.returncode == code, result.stderr
    assert recast.inspect(tmp_path / "out").dtypes.keys() == {"BF16"}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_says_what_it_does_on_each_exit_code(name: str) -> None:
    text = (PIPELINE / name).read_text()
    said = "".join(re.findall(r"^#.*\n|^\|.*\n", text, re.MULTILINE))
    assert all(re.search(rf"\b{code}\b", said) for code in CODES), name


def test_every_file_is_listed_and_names_no_host_and_no_user() -> None:
    readme = (PIPELINE / "README.md").read_text()
    for path in PIPELINE.rglob("*"):
        if path.is_file():
            known = path.name in readme or path.name.split(".")[0] in readme
            assert known or path.name in ("params.yaml", "README.md"), path
            host = re.search(r"\b[\w-]+\.(?:io|com|org|dev|net)/(?!v1)", path.read_text())
            assert host is None, (path, host)


def test_the_action_passes_inputs_as_variables_only() -> None:
    (action,) = parsed("github/action.yml")
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
    used = set(re.findall(r"inputs\.([\w-]+)", (PIPELINE / "github/action.yml").read_text()))
    assert used == set(action["inputs"])
    (workflow,) = parsed("github/workflow.yml")
    step = next(s for s in workflow["jobs"]["convert"]["steps"] if s.get("id") == "recast")
    required = {name for name, entry in action["inputs"].items() if entry.get("required")}
    assert required <= set(step["with"]) <= set(action["inputs"])


def run_action(tmp_path: Path, **inputs: str) -> tuple["subprocess.CompletedProcess[str]", str]:
    """Runs the action's second step as GitHub does; what it said, and its outputs."""
    (action,) = parsed("github/action.yml")
    step = next(step for step in action["runs"]["steps"] if step.get("id") == "convert")
    (tmp_path / "recast" / "bin").mkdir(parents=True, exist_ok=True)
    command = tmp_path / "recast" / "bin" / "recast"
    if not command.exists():
        command.symlink_to(BIN / "recast")
    variables = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: inputs[match[1]], value)
        for name, value in step["env"].items()
    }
    output, summary = tmp_path / "output", tmp_path / "summary"
    output.write_text("")
    result = shell(
        *["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        **variables,
        GITHUB_ACTION_PATH=str(PIPELINE / "github"),
        GITHUB_OUTPUT=str(output),
        GITHUB_STEP_SUMMARY=str(summary),
        RUNNER_TEMP=str(tmp_path),
    )
    return result, output.read_text()


def test_the_action_converts_and_reports(model: Path, tmp_path: Path) -> None:
    inputs = {"source": "model", "dest": "out", "to": "bf16"}
    result, output = run_action(tmp_path, **inputs, options="--keep *.bias* --threads 1")
    # The pattern is no file's name, and nothing here is called so.
    assert (result.returncode, output) == (2, "exit-code=2\n")
    result, output = run_action(tmp_path, **inputs, options="")
    assert result.returncode == 0, result.stderr
    assert output == "exit-code=0\nreport=out/recast.json\n"
    assert "1 cast" in result.stdout
    assert "1 cast" in (tmp_path / "summary").read_text()
    report = {"REPORT": str(tmp_path / "out" / "recast.json")}
    (workflow,) = parsed("github/workflow.yml")
    check = workflow["jobs"]["convert"]["steps"][-1]["run"]
    assert shell("bash", "-c", check, cwd=tmp_path, **report).returncode == 0
    result, output = run_action(tmp_path, **{**inputs, "to": "fp16"}, options="")
    assert (result.returncode, output) == (73, "exit-code=73\n")


def test_an_input_of_the_action_is_never_run(model: Path, tmp_path: Path) -> None:
    evil = '$(touch evil); touch evil; "'
    result, _ = run_action(tmp_path, source=evil, dest="`touch evil`", to="bf16", options="")
    assert result.returncode == 65
    assert not (tmp_path / "evil").exists()


def containers(name: str) -> list[dict[str, Any]]:
    found = []
    for manifest in parsed(name):
        spec = manifest["spec"]
        pod = spec.get("template", {}).get("spec", {})
        found += pod.get("initContainers", []) + pod.get("containers", [])
        found += [spec["container"]] if "container" in spec else []
    return found


@pytest.mark.parametrize("name", ["job", "init-container", "kserve"])
def test_a_manifest_is_whole_and_what_it_runs_exists(name: str) -> None:
    installed = (PIPELINE / "Dockerfile").read_text()
    for manifest in parsed(f"kubernetes/{name}.yaml"):
        assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert re.fullmatch(r"[a-z][a-z0-9-]*", manifest["metadata"]["name"])
    for container in containers(f"kubernetes/{name}.yaml"):
        if container["image"].startswith("recast:"):
            assert container["image"] == f"recast:{recast.__version__}"
            assert f"/usr/local/bin/{container['command'][0]}" in installed
            assert "memory" in container["resources"]["limits"]
            source = next(v for v in container["volumeMounts"] if v["name"] == "source")
            assert source["readOnly"] is True


@pytest.mark.parametrize("name", ["job", "init-container"])
def test_a_pod_is_not_root_and_mounts_only_volumes_it_has(name: str) -> None:
    (manifest,) = parsed(f"kubernetes/{name}.yaml")
    pod = manifest["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod.get("initContainers", []) + pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        if container["name"] == "convert":
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_job_repeats_only_what_a_repetition_can_mend() -> None:
    (job,) = parsed("kubernetes/job.yaml")
    rules = job["spec"]["podFailurePolicy"]["rules"]
    names = {container["name"] for container in job["spec"]["template"]["spec"]["containers"]}
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert {rule["onExitCodes"]["containerName"] for rule in rules} <= names
    actions = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules}
    assert actions == {"FailJob": [1, 2, 65, 73], "Ignore": [130, 143]}
    assert job["spec"]["backoffLimit"] > 0


@pytest.mark.parametrize("name", ["job", "init-container"])
def test_the_arguments_of_a_pod_convert(name: str, model: Path, tmp_path: Path) -> None:
    (convert,) = [c for c in containers(f"kubernetes/{name}.yaml") if c["name"] == "convert"]
    mounts = {mount["mountPath"]: tmp_path / mount["name"] for mount in convert["volumeMounts"]}
    arguments = list(convert["args"])
    for inside, outside in mounts.items():
        outside.mkdir()
        arguments = [re.sub(f"^{inside}/", f"{outside}/", argument) for argument in arguments]
    model.rename(tmp_path / "source" / "model")
    assert shell(SCRIPT, *arguments, cwd=tmp_path).returncode == 0
    assert recast.inspect(arguments[1]).dtypes.keys() == {"BF16"}


def test_the_storage_initializer_takes_source_and_dest(model: Path, tmp_path: Path) -> None:
    storage, service = parsed("kubernetes/kserve.yaml")
    (form,) = storage["spec"]["supportedUriFormats"]
    uri = service["spec"]["predictor"]["model"]["storageUri"]
    assert uri.startswith(form["prefix"])
    assert storage["spec"]["container"]["name"] == "storage-initializer"
    volumes = {volume["name"] for volume in service["spec"]["predictor"]["volumes"]}
    assert {mount["name"] for mount in storage["spec"]["container"]["volumeMounts"]} == volumes
    script = PIPELINE / "storage-initializer.sh"
    variables = {entry["name"]: entry["value"] for entry in storage["spec"]["container"]["env"]}
    for number, prefix in enumerate([form["prefix"], "file://", ""]):
        dest = tmp_path / f"out {number}"
        result = shell(script, f"{prefix}{model}", dest, cwd=tmp_path, **variables)
        assert result.returncode == 0, result.stderr
        assert recast.inspect(dest).dtypes.keys() == {"BF16"}
    assert shell(script, model, cwd=tmp_path).returncode == 2
    assert shell(script, "recast:///nowhere", tmp_path / "x", cwd=tmp_path).returncode == 65


def test_the_dvc_stage_makes_its_output(model: Path, tmp_path: Path) -> None:
    (pipeline,), (params,) = parsed("dvc/dvc.yaml"), parsed("dvc/params.yaml")
    stage = pipeline["stages"]["convert"]
    (tmp_path / "convert.sh").write_text(SCRIPT.read_text())
    assert all((tmp_path / needed).exists() for needed in stage["deps"])
    assert set(stage["params"]) == set(params)

    def filled(text: str) -> str:
        return re.sub(r"\$\{convert\.(\w+)\}", lambda match: params["convert"][match[1]], text)

    (out,) = map(filled, stage["outs"])
    result = shell("sh", "-c", filled(stage["cmd"]), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert recast.inspect(tmp_path / out).dtypes.keys() == {"BF16"}


def test_the_rule_for_make_converts_once_and_again_when_the_model_is_newer(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "convert.sh").write_text(SCRIPT.read_text())
    (tmp_path / "Makefile").write_text(f"include {PIPELINE / 'make' / 'convert.mk'}\n")
    command = ["make", "--no-print-directory", "model-bf16/config.json"]
    assert shell(*command, cwd=tmp_path).returncode == 0
    made = tree(tmp_path / "model-bf16")
    assert "up to date" in shell(*command, cwd=tmp_path).stdout
    (model / "config.json").write_text('{"model_type": "llama", "dtype": "float32", "new": 1}\n')
    later = time.time() + 5
    os.utime(model / "config.json", (later, later))
    assert shell(*command, cwd=tmp_path).returncode == 0
    assert tree(tmp_path / "model-bf16") != made
    assert json.loads((tmp_path / "model-bf16" / "config.json").read_text())["new"] == 1
    failed = shell("make", "MODEL=nowhere", "nowhere-fp16/config.json", cwd=tmp_path)
    assert failed.returncode == 2
    (model / "model.safetensors").write_bytes(b"")
    failed = shell("make", "model-fp16/config.json", cwd=tmp_path)
    assert (failed.returncode, "Error 65" in failed.stderr) == (2, True)


def test_the_image_is_small_and_not_root_and_copies_what_is_there() -> None:
    text = (PIPELINE / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    stages = [rest.split() for word, rest in lines if word == "FROM"]
    assert [stage[0].endswith("-slim") for stage in stages] == [True, True]
    # The last stage has no compiler and no cache: it only copies.
    last = lines[max(number for number, (word, _) in enumerate(lines) if word == "FROM") :]
    (user,) = [rest for word, rest in last if word == "USER"]
    assert int(user.split(":")[0]) > 0
    assert not any("pip" in rest for word, rest in last if word == "RUN")
    assert [rest for word, rest in last if word == "ENTRYPOINT"] == ['["recast"]']
    ignored = (PIPELINE / "Dockerfile.dockerignore").read_text().splitlines()
    for word, rest in lines:
        if word == "COPY" and "--from" not in rest:
            for place in [part for part in rest.split() if not part.startswith("--")][:-1]:
                assert (ROOT / place).exists() or place == "dist"
                assert any(place.startswith(line[1:]) for line in ignored if line[0] == "!")
