"""What all tests share: small models, the command, and which tests need torch."""

import importlib.util
import os
import re
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import recast
from checksums import all_kinds
from interrupted import KIB, sharded
from support import raw_bytes, recast_here

# The workers, and the processes that tests start, share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
OURS = r"tensors|dequantizers|dequantized_pairs|quantized_\w+|pickle_judge|on_gpu"
TORCH = re.compile(rf"^ *(?:import|from) (?:torch|transformers|safetensors\.torch|{OURS})\b", re.M)
VERIFIES = re.compile(r'recast\.verify\(|"--verify"|"--device"')

Save = Callable[[str, str], Path]
Run = Callable[..., str]


@cache
def says(pattern: re.Pattern[str], path: Path) -> bool:
    return pattern.search(path.read_text(encoding="utf-8")) is not None


collect_ignore = [
    str(path)
    for path in Path(__file__).parent.rglob("test_*.py")
    if not HAS_TORCH and says(TORCH, path)
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks with `torch` every file that imports or verifies, and every test of a saved model."""
    for item in items:
        needed = says(TORCH, item.path) or says(VERIFIES, item.path)
        if needed or "saved" in getattr(item, "fixturenames", ()):
            item.add_marker("torch")


def build(kind: str, **changes: Any) -> Any:
    """A small model of random weights, the same ones every time; `changes` are to its config."""
    import torch
    import transformers

    torch.manual_seed(0)
    if kind == "t5":
        sizes = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
        sizes |= {"num_heads": 4, "decoder_start_token_id": 0, "tie_word_embeddings": True}
        config = transformers.T5Config(**{**sizes, **changes})
        return transformers.T5ForConditionalGeneration(config).eval()
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64}
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**{**sizes, **changes})).eval()
    sizes |= {"num_key_value_heads": 2, "tie_word_embeddings": kind == "tied"}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes})).eval()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """`saved(kind, dtype)`: a directory that `save_pretrained` wrote; read it, never change it."""
    pytest.importorskip("transformers")
    import torch
    from safetensors.torch import load_file, save_file
    from tensors import DTYPES

    made: dict[tuple[str, str], Path] = {}

    def save(kind: str, dtype: str) -> Path:
        if (kind, dtype) not in made:
            path = tmp_path_factory.mktemp(f"{kind}-{dtype}") / "model"
            shard_size = "20KB" if kind == "llama" else "1GB"
            model = build(kind).to(DTYPES[dtype])
            model.save_pretrained(path, max_shard_size=shard_size)
            if kind == "bert":
                # What transformers stored for years, and many checkpoints on the Hub still hold.
                weights = load_file(path / "model.safetensors")
                weights["embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
                save_file(weights, path / "model.safetensors", {"format": "pt"})
            made[kind, dtype] = path
        return made[kind, dtype]

    return save


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with one fp32 shard and a config: the smallest checkpoint there is."""
    path = tmp_path / "model"
    path.mkdir()
    data = struct.pack("<6f", *range(6))
    shard = raw_bytes([("layer.weight", "F32", [2, 3], data)], {"format": "pt"}, pad_to=8)
    (path / "model.safetensors").write_bytes(shard)
    (path / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}\n')
    return path


@pytest.fixture
def run() -> Run:
    """`run(*arguments, codes=...)`: the command, in this process, and what it prints. What does not
    end with an exit code of its own is an exception here."""

    def run(*arguments: object, codes: tuple[int, ...] = (0, 1, 65)) -> str:
        result = recast_here(*arguments)
        assert result.returncode in codes, result.stderr[:1000]
        assert len(result.stdout + result.stderr) < 100_000
        assert not result.stderr or result.stderr.startswith("error: ")
        return result.stdout + result.stderr

    return run


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result with every kind of file, made from `source` beside it."""
    source = all_kinds(tmp_path / "source")
    recast.convert(source, tmp_path / "out", to="bf16", on_overflow="inf", keep=["kept"])
    return tmp_path / "out"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model of four small shards, which one run converts in no time."""
    return sharded(tmp_path / "in", [16 * KIB] * 4)
