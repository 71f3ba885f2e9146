"""`verify --loader transformers`: a config describes a model, and never chooses what code runs."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from conftest import Save
from hostile import CANARY, unopened
from recast.verification.header import Headers
from recast.verification.loaders import sealed
from support import environment, recast_process

SHARD, INDEX = "model.safetensors", "model.safetensors.index.json"
KERNEL = "kernels-community/flash-attn3"

# A stand-in for the package that fetches and runs kernels: it says what it is asked for.
KERNELS = """
import sys
class _Any:
    def __init__(self, *a, **k): pass
    def __call__(self, *a, **k): return a[0] if a else self
def get_kernel(repo, **k):
    sys.stderr.write(f"FETCH AND RUN {repo}\\n")
    raise RuntimeError("stand-in")
def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    return _Any
"""
STEERING: dict[str, dict[str, Any]] = {
    "a kernel": {"attn_implementation": KERNEL},
    "a function of a kernel": {"attn_implementation": f"{KERNEL}:flash"},
    "another's kernel": {"attn_implementation": "evil/kernel@main"},
    "a paged kernel": {"attn_implementation": f"paged|{KERNEL}"},
    "flash attention": {"attn_implementation": "flash_attention_2"},
    "flash attention 3": {"attn_implementation": "flash_attention_3"},
    "by part": {"attn_implementation": {"": KERNEL, "text_config": KERNEL}},
    "transformers' own key": {"_attn_implementation": KERNEL},
    "the one behind it": {"_attn_implementation_internal": KERNEL},
    "another name for it": {"attribute_map": {"x": "_attn_implementation_internal"}, "x": KERNEL},
    "a part": {"text_config": {"attn_implementation": KERNEL}},
    "a part, transformers' own key": {"vision_config": {"_attn_implementation": KERNEL}},
    "a part that is hidden": {"sub_configs": {}, "text_config": {"_attn_implementation": KERNEL}},
    "a kernel for experts": {"experts_implementation": "sonicmoe"},
    "experts, transformers' own key": {"_experts_implementation": "deepgemm"},
    "a kernel for every layer": {"use_kernels": True, "kernel_config": {"RMSNorm": KERNEL}},
    "a patch of classes": {"fusion_config": {"fuse": True}},
    "code beside it": {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
    "code of another's": {"auto_map": {"AutoConfig": "evil/evil--evil.Config"}},
    "another config": {"configuration_files": ["config.4.0.0.json"]},
    "other weights": {"transformers_weights": "../other.safetensors"},
}  # fmt: skip


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(config[key], changes[key]) for key in config.keys() & changes.keys()
            if isinstance(config[key], dict) and isinstance(changes[key], dict)}  # fmt: skip
    return {**config, **changes, **both}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of parts, which have configs of their own."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4}
    text = {**sizes, "model_type": "llama", "vocab_size": 96, "num_key_value_heads": 2}
    config = transformers.LlavaConfig(
        text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}
    )
    path = tmp_path_factory.mktemp("llava") / "model"
    transformers.LlavaForConditionalGeneration(config).save_pretrained(path)
    return path


@pytest.fixture
def out(saved: Save, tmp_path: Path) -> Path:
    """A result that is right, and of which a test changes the config: without a report, only what
    it says of dtypes is checked."""
    recast.convert(saved("t5", "fp32"), tmp_path / "out", to="bf16", sync=False)
    (tmp_path / "out" / "recast.json").unlink()
    return tmp_path / "out"


def change(out: Path, changes: dict[str, Any]) -> None:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(merged(config, changes)))


def verify(saved: Save, out: Path) -> recast.Verification:
    return recast.verify(saved("t5", "fp32"), out, device="cpu", loader="transformers")


def test_no_config_makes_transformers_fetch_or_run_code(llava: Path, tmp_path: Path) -> None:
    package = tmp_path / "packages"
    (package / "kernels").mkdir(parents=True)
    (package / "kernels" / "__init__.py").write_text(KERNELS)
    (package / "kernels-0.18.2.dist-info").mkdir()
    (package / "kernels-0.18.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n"
    )
    recast.convert(llava, tmp_path / "out", to="bf16", sync=False)
    (tmp_path / "out" / "recast.json").unlink()
    (tmp_path / "out" / "evil.py").write_text("raise SystemExit('RUN evil.py')")
    (tmp_path / "other.safetensors").write_bytes(CANARY)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    texts = {name: json.dumps(merged(config, changes)) for name, changes in STEERING.items()}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    # All in one process, because importing torch and transformers takes longest.
    script = """
import json, sys
from pathlib import Path
import recast
import transformers.integrations.hub_kernels as hub
assert hasattr(hub, "get_kernel_hub"), "the stand-in is not taken for the package"
source, out, texts = sys.argv[1:]
for name, text in json.loads(Path(texts).read_text()).items():
    (Path(out) / "config.json").write_text(text)
    found = recast.verify(source, out, device="cpu", loader="transformers")
    print(json.dumps([name, found.failures(), found.notes]))
"""
    paths = [str(package), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", script, llava, tmp_path / "out", tmp_path / "texts.json"],
        env=environment(PYTHONPATH=os.pathsep.join(paths)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in found] == list(STEERING)
    for name, problems, notes in found:
        assert (name, problems) == (name, [])
        assert "loaded as LlavaForConditionalGeneration" in notes


def test_no_model_class_fetches_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import hub_kernels

    asked: list[str] = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(
        hub_kernels, "get_kernel_hub", lambda name, **_: asked.append(name), raising=False
    )
    with sealed.off(), pytest.raises(FileNotFoundError, match="off the network"):
        hub_kernels.get_kernel("kernels-community/mra", version=1)
    assert not asked
    hub_kernels.get_kernel("kernels-community/mra", version=1)
    assert asked == ["kernels-community/mra"]


def test_a_sealed_off_thread_cannot_connect_and_others_can() -> None:
    from transformers.utils import logging

    server = socket.create_server(("127.0.0.1", 0))
    address, told = server.getsockname(), []
    before = {name: getattr(socket.socket, name) for name in ("connect", "sendto")}
    verbosity = logging.get_verbosity()

    def connect() -> None:
        with socket.create_connection(address, 5):
            told.append("connected")

    with sealed.off():
        with sealed.off():
            pass
        for attempt in (
            connect,
            lambda: socket.getaddrinfo("localhost", 80),
            lambda: socket.socket().connect_ex(address),
            lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", address),
        ):
            with pytest.raises(OSError, match="off the network"):
                attempt()
        other = threading.Thread(target=connect)
        other.start()
        other.join()
        assert told == ["connected"]
    connect()
    server.close()
    assert told == ["connected"] * 2
    assert {name: getattr(socket.socket, name) for name in before} == before
    assert logging.get_verbosity() == verbosity


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": [5]}, "architectures is not a list of names: [5]"),
        ({"architectures": 5}, "architectures is not a list of names: 5"),
        ({"architectures": "T5"}, "architectures is not a list of names: T5"),
        ({"architectures": [["T5"]]}, "architectures is not a list of names: "),
        ({"architectures": {"T5": 1}}, "architectures is not a list of names: "),
        ({"model_type": 5}, "model_type is not a name: 5"),
        ({"model_type": ["t5"]}, "model_type is not a name: "),
        ({"quantization_config": {"quant_method": "awq"}}, "has a quantization_config"),
        ({"x": [{"quantization_config": {}}]}, "has a quantization_config"),
        ({"compression_config": {"format": "x"}}, "has a compression_config"),
        ({"num_layers": 10**10}, "num_layers is 10000000000, more than any model has"),
        ({"x": {"num_labels": 10**10}}, "num_labels is 10000000000, more than any model has"),
    ],
)
def test_a_config_that_no_model_can_have_is_an_error(
    changes: dict[str, Any], says: str, saved: Save, out: Path
) -> None:
    change(out, changes)
    with pytest.raises(recast.InputError) as caught:
        verify(saved, out)
    assert caught.value.message.startswith(f"{out / 'config.json'}: ")
    assert says in caught.value.message
    assert caught.value.hint == "leave out loader"
    assert recast.verify(saved("t5", "fp32"), out, device="cpu").passed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_layers": 100_000}, "it has more than 1"),
        ({"vocab_size": 10**12}, "config.json describes a model of"),
        ({"dtype": "load"}, "transformers does not know the model"),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "x"}, "does not know"),
        ({"rope_scaling": 5, "d_model": "x"}, "transformers"),
    ],
)
def test_a_model_that_does_not_match_its_shards_is_a_problem(
    changes: dict[str, Any], says: str, saved: Save, out: Path
) -> None:
    change(out, changes)
    found = verify(saved, out)
    failures = found.failures()
    assert any(says in failure for failure in failures), failures
    assert max(map(len, failures)) < 1500
    # The values are compared all the same.
    assert found.values_checked > 1000


@pytest.mark.parametrize(
    "name", ["pipeline", "Trainer", "AutoModel", "PreTrainedModel", "models", "T5Config", "x", ""]
)
def test_only_model_classes_are_loaded(name: str, saved: Save, out: Path) -> None:
    change(out, {"architectures": [name, "T5ForConditionalGeneration"]})
    found = verify(saved, out)
    if name == "PreTrainedModel":
        assert "transformers cannot load the model" in found.problems[0].message
    else:
        assert found.passed, found.failures()
        assert "loaded as T5ForConditionalGeneration" in found.notes


def test_transformers_sees_only_the_config_the_index_and_the_shards(saved: Save, out: Path) -> None:
    (out / "custom_generate").mkdir()
    (out / "nested").mkdir()
    for name in (
        *("adapter_config.json", "adapter_model.safetensors"),
        *("pytorch_model.bin", "custom_generate/generate.py", f"nested/{SHARD}", "hubconf.py"),
    ):
        (out / name).write_bytes(CANARY if name.endswith(".safetensors") else b"{")
    headers: Headers = {SHARD: {}, "adapter_model.safetensors": {}}
    with sealed.folder(out, {"x": 1}, headers) as path:
        assert {entry.name for entry in path.iterdir()} == {"config.json", *headers}
        assert json.loads((path / "config.json").read_text()) == {"x": 1}
        assert (path / SHARD).resolve() == out / SHARD
    assert not path.exists()
    assert (out / "generation_config.json").exists()
    watched = [out / "adapter_config.json", out / "hubconf.py"]
    with unopened(*watched, out / "pytorch_model.bin", out / "custom_generate" / "generate.py"):
        found = verify(saved, out)
    assert [(problem.kind, problem.file) for problem in found.problems] == [
        ("file_unexpected", name) for name in ("adapter_model.safetensors", f"nested/{SHARD}")
    ]
    assert any("loaded as" in note for note in found.notes)


@pytest.mark.parametrize(
    "shard", ["../canary.safetensors", "{root}/canary.safetensors", "canary.bin", "", ".", 5, None]
)
def test_transformers_follows_no_index_to_another_file(
    shard: Any, saved: Save, tmp_path: Path
) -> None:
    recast.convert(saved("llama", "fp32"), tmp_path / "out", to="bf16", sync=False)
    (tmp_path / "canary.safetensors").write_bytes(CANARY)
    torch.save({}, tmp_path / "out" / "canary.bin")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    shard = shard.format(root=tmp_path) if isinstance(shard, str) else shard
    index["weight_map"][name] = shard
    (tmp_path / "out" / INDEX).write_text(json.dumps(index))
    with unopened(tmp_path / "canary.safetensors", tmp_path / "out" / "canary.bin"):
        found = recast.verify(
            saved("llama", "fp32"), tmp_path / "out", device="cpu", loader="transformers"
        )
    assert any(f"no file named {SHARD}" in failure for failure in found.failures())


def test_a_config_may_name_a_shard_beside_it(saved: Save, tmp_path: Path) -> None:
    for name in ("source", "out"):
        recast.convert(saved("t5", "fp32"), tmp_path / name, to="fp32", sync=False)
        (tmp_path / name / "recast.json").unlink()
        (tmp_path / name / SHARD).rename(tmp_path / name / "weights.safetensors")
        change(tmp_path / name, {"transformers_weights": "weights.safetensors"})
    found = recast.verify(
        tmp_path / "source", tmp_path / "out", device="cpu", loader="transformers"
    )
    assert found.passed, found.failures()


def test_messages_of_transformers_name_the_result_not_the_sealed_folder(
    saved: Save, out: Path
) -> None:
    change(out, {"model_type": "no such model\nhint: x"})
    (problem,) = verify(saved, out).failures()
    assert problem.startswith(f"transformers does not know the model in {out}: ")
    assert "recast-" not in problem
    assert "\n" not in problem


def test_transformers_prints_nothing(saved: Save, out: Path) -> None:
    # It warns of a layer without weights, with names as they stand in the config.
    change(out, {"num_layers": 3})
    command = ("verify", saved("t5", "fp32"), out, "--device", "cpu", "--loader", "transformers")
    done = recast_process(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "newly initialized" in done.stdout
