"""What verification promises, it works out by itself: two ways to decide, which must agree.

Each test makes many small sources and compares what `recast.plan` decides with what verification
does, which shares no code with it. Where they differ, one of them is wrong.
"""

import ast
import contextlib
import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from recast._core import keep_lists
from recast.options import Options
from recast.verification import wide
from recast.verification.intent import promised
from recast.verification.promise import Promise
from support import raw_bytes

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "F8_E4M3": 1}
ROOT = Path(recast.__file__).parent / "verification"


def shard(tensors: dict[str, tuple[str, int]]) -> bytes:
    """A file of tensors of a dtype and a number of zeros each."""
    rows = [(name, dtype, [n], bytes(WIDTHS[dtype] * n)) for name, (dtype, n) in tensors.items()]
    return raw_bytes(rows, {"format": "pt"}, pad_to=8)


def compare(source: Path, **options: Any) -> Promise:
    """Compares plan and promise, tensor by tensor and file by file."""
    planned = recast.plan(source, **options)
    promise = promised(planned.source, Options(**options), {})
    decided = {(tensor.file, tensor.name): tensor.dtype for tensor in planned.tensors}
    dtypes = {
        (file, name): tensor.dtypes
        for file, tensors in promise.tensors.items()
        for name, tensor in tensors.items()
    }
    assert {key: (dtype,) for key, dtype in decided.items()} == dtypes
    kept = [tensor.name for tensor in planned.tensors if tensor.action == "keep"]
    assert sorted(kept) == sorted(promise.kept)
    own = promise.source
    needed = {*own.shards, *own.indexes, *own.settings, *own.others}
    # What only says how weights are quantized goes where none is.
    assert {file.path for file in planned.files} - own.sidecars == needed
    assert {f.path: f.source for f in planned.files if f.action == "cast"} == own.shards
    return promise


def test_verification_takes_nothing_from_a_plan() -> None:
    """Only where it asks whether there is one."""
    users = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "recast._core":
                names = {name.name for name in node.names}
                users |= {path.stem} if names & {"Plan", "PlannedTensor", "Checkpoint"} else set()
    assert users == {"intent", "publishing"}
    (call,) = [
        node
        for node in ast.walk(ast.parse((ROOT / "intent.py").read_text()))
        if isinstance(node, ast.Assign) and "checkpoint.plan" in ast.unparse(node.value)
    ]
    name = ast.unparse(call.targets[0])
    text = (ROOT / "intent.py").read_text()
    assert text.count(f"{name}.") == text.count(f"{name}.source") + text.count(f"{name}.runs")


LISTS = json.loads(keep_lists())
PIECES = sorted({piece for entry in LISTS for piece in entry["names"]})
RULES = sorted({piece for name in wide.NAMES for piece in (*name.pieces, *name.beside)})


def spelled(piece: str) -> list[str]:
    """Names that have a piece of one, and some that nearly have."""
    bare = piece.strip(".")
    return [
        f"a.{bare}.b",
        f"{bare}.b",
        f"a.{bare}",
        bare,
        f"a.{bare}x.b",
        f"a.x{bare}.b",
        f"a{bare}",
    ]


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_what_loaders_keep_is_decided_alike(dtype: str, tmp_path: Path) -> None:
    kept = 0
    for entry in LISTS:
        names = sorted({name for piece in [*entry["names"], *RULES[:9]] for name in spelled(piece)})
        tensors = {name: (dtype, 1 + number % 2) for number, name in enumerate(names)}
        (tmp_path / "model.safetensors").write_bytes(shard(tensors))
        key = "model_type" if "model_types" in entry else "_class_name"
        for owner in {*entry.get("model_types", ()), *entry.get("class_names", ())}:
            config = {"inner": [{key: owner}], "transformers.js_config": {key: "t5"}}
            (tmp_path / "config.json").write_text(json.dumps(config))
            kept += sum(len(compare(tmp_path, to=to).kept) for to in ("fp16", "bf16"))
    assert kept > 1000
    assert compare(tmp_path, to="bf16", auto_keep=False).kept == []
    assert compare(tmp_path, to="fp32").kept == []


@pytest.mark.parametrize("seed", range(40))
def test_what_names_and_shares_say_is_decided_alike(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    for file in ("model.safetensors", "vae/model.safetensors", "unet/optimizer.safetensors"):
        pieces = chance.sample(RULES, chance.randrange(len(RULES)))
        pieces += chance.sample(
            ["x.exp_avg", "x.step", "y.step", "y.sum", "z/mu", "z/exp_inf", "step", "w.prev"], 4
        )
        names = {chance.choice(spelled(piece)) for piece in pieces} | {*pieces[-4:], "big"}
        dtypes = [chance.choice([*WIDTHS][:5]) for _ in range(2)]
        tensors = {name: (chance.choice(dtypes), chance.choice([1, 3])) for name in names}
        tensors["big"] = ("BF16", chance.choice([1, 200, 2000]))
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(shard(tensors))
    keep = chance.choice([[], ["big"], ["vae/*"], ["re:step$", "*.exp_*"], ["{big,y.*}"]])
    for to in ("fp16", "bf16"):
        # Not every pattern matches in every one.
        with contextlib.suppress(recast.UsageError):
            compare(tmp_path, to=to, keep=keep)
        compare(tmp_path, to=to)


FOLDERS = ["", "a", "b/c", "original"]
NAMES = [
    *("model.safetensors", "model-00001-of-00002.safetensors", "x.SAFETENSORS", "m.part"),
    *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.fp16.bin"),
    *("diffusion_pytorch_model.bin", "adapter_model.bin", "adapter_config.json"),
    *("consolidated.00.pth", "consolidated.01.pth", "net.pt", "net.pth.tar", "v1.5.ckpt"),
    *("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "spk_dict.pt"),
    *("zero_optim_states.pt", "random_states_0.pkl", "tf_model.h5", "model.onnx_data_1"),
    *("a.gguf", "config.json", "params.json", "sentence_bert_config.json", "tokenizer.json"),
    *("README.md", ".gitattributes", "recast.json", "SHA256SUMS", "quantize_config.json"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json", "tf_model.h5.index.json"),
    *("model.safetensors.index.fp16.json", "bert.ckpt.index", "no_pickle.bin", ".bin"),
]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("pickle") / "x"
    torch.save({"w": torch.ones(2)}, path)
    pickled = {".bin", ".pt", ".pth", ".tar", ".ckpt"}
    made = {name: path.read_bytes() for name in NAMES if Path(name).suffix in pickled}
    made |= {name: shard({"w": ("F32", 2)}) for name in NAMES if name.endswith(".safetensors")}
    made |= {name: b"{}" for name in NAMES if name.endswith(".json")}
    for name, to in (("model.safetensors", "safetensors"), ("pytorch_model.bin", "bin")):
        first = f"{name.split('.')[0]}-00001-of-00002.{to}"
        for index in (f"{name}.index.json", f"{name}.index.fp16.json"):
            made[index] = json.dumps({"weight_map": {"w": first}}).encode()
    made["no_pickle.bin"] = b"nothing of torch's"
    return {name: made.get(name, b"text") for name in NAMES}


@pytest.mark.parametrize("seed", range(25))
def test_what_becomes_of_files_is_decided_alike(
    seed: int, contents: dict[str, bytes], tmp_path: Path
) -> None:
    chance = random.Random(seed)
    compared, number = 0, 0
    while compared < 8:
        number += 1
        root = tmp_path / str(number)
        root.mkdir()
        paths = [f"{folder}/{name}" for folder, name in product(FOLDERS, NAMES)]
        for path in chance.sample(paths, chance.randrange(2, 9)):
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents[file.name])
        try:
            recast.plan(root, to="bf16")
        except recast.RecastError:
            # There is nothing to convert, or it does not belong together.
            continue
        compare(root, to="bf16")
        compared += 1
