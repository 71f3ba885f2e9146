"""Models that were saved as pickles: transformers loads the result, and it computes, to the last
bit, what the state dict of the pickle cast by torch computes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
import transformers
from conftest import build
from safetensors.torch import load_file
from saved_by_torch import FORMATS, assert_written, load, save, save_shards
from sources import Tensors
from support import files, slow
from tensors import DTYPES

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}
SIZES |= {"num_attention_heads": 4}
PIXELS: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_labels": 5}


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))


def gpt2() -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 96,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
    }
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def modernbert() -> Any:
    tokens: dict[str, Any] = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
    return transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**SIZES, **tokens))


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **PIXELS))


@dataclass(frozen=True)
class Kind:
    """A model, what old versions of transformers stored of it besides, and which of its tensors
    are the same as others."""

    make: Callable[[], Any]
    tied: dict[str, str] = field(default_factory=dict)
    more: Callable[[], Tensors] = dict


POSITIONS = {"bert.embeddings.position_ids": torch.arange(512).unsqueeze(0)}
MASKS: Tensors = {
    f"transformer.h.{layer}.attn.{name}": value
    for layer in range(2)
    for name, value in (
        ("bias", torch.tril(torch.ones(64, 64, dtype=torch.bool)).view(1, 1, 64, 64)),
        ("masked_bias", torch.tensor(-1e4)),
    )
}
KINDS = {
    "bert": Kind(
        bert,
        {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        lambda: POSITIONS,
    ),
    "gpt2": Kind(gpt2, {"lm_head.weight": "transformer.wte.weight"}, lambda: MASKS),
    "llama": Kind(lambda: build("llama")),
    "modernbert": Kind(modernbert, {"decoder.weight": "model.embeddings.tok_embeddings.weight"}),
    "t5": Kind(
        lambda: build("t5"),
        dict.fromkeys(
            (
                "decoder.embed_tokens.weight",
                "encoder.embed_tokens.weight",
                "lm_head.weight",
            ),
            "shared.weight",
        ),
    ),
    "tied": Kind(lambda: build("tied"), {"lm_head.weight": "model.embed_tokens.weight"}),
    "vit": Kind(vit),
}
TARGETS = ["as-stored", "bf16", "fp16"]


def stored(kind: str) -> tuple[Any, Tensors]:
    """A model of random values, and its state dict as it was saved."""
    torch.manual_seed(0)
    model = KINDS[kind].make().eval()
    state = model.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            # Also what begins as zeros or ones, which every dtype holds exactly.
            tensor.add_(torch.randn(tensor.shape), alpha=0.02)
    state.update(KINDS[kind].more())
    return model, state


def saved(kind: str, folder: Path, format: str = "zip") -> tuple[Any, Tensors]:
    """The same, saved in one file beside its config."""
    model, state = stored(kind)
    save(state, folder / "pytorch_model.bin", format)
    describe(model, folder)
    return model, state


def describe(model: Any, folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)


def answer(model: Any) -> torch.Tensor:
    """Logits."""
    tokens = torch.arange(1, 25).reshape(2, 12)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if model.config.model_type == "t5":
        inputs["decoder_input_ids"] = tokens[:, :5]
    if model.config.model_type == "vit":
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        inputs = {"pixel_values": pixels.to(model.dtype)}
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(**inputs).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.001
    return logits


def assert_computes(cls: Any, result: Path, state: Tensors, to: str) -> None:
    """transformers makes the same model of the result as of the state dict."""
    found = cls.from_pretrained(result, dtype="auto")
    dtype = DTYPES["fp32" if to == "as-stored" else to]
    assert found.config.dtype == dtype
    # It casts by torch, but for what the library keeps in fp32.
    judge = cls.from_pretrained(None, config=found.config, state_dict=dict(state), dtype=dtype)
    ours, theirs = found.state_dict(), judge.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name].dtype != theirs[name].dtype] == []
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert torch.equal(answer(found), answer(judge))


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["zip", *slow("legacy")])
def test_transformers_computes_the_same_bits_as_from_the_pickle(
    format: str, kind: str, to: Any, tmp_path: Path
) -> None:
    model, _ = saved(kind, tmp_path / "in", format)
    recast.convert(tmp_path / "in", tmp_path / "out", to=to, verify="cpu", sync=False)
    assert files(tmp_path / "out") == {"config.json", "model.safetensors", "recast.json"}
    assert_computes(type(model), tmp_path / "out", load(tmp_path / "in/pytorch_model.bin"), to)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_tied_tensor_is_written_once_and_noted(
    format: str, kind: str, to: Any, tmp_path: Path
) -> None:
    _, state = saved(kind, tmp_path / "in", format)
    options: dict[str, Any] = {"auto_keep": False, "sync": False}
    recast.convert(tmp_path / "in", tmp_path / "out", to=to, **options)
    assert_written(tmp_path / "out" / "model.safetensors", state, to, KINDS[kind].tied)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("kind", ["llama", "tied", "t5"])
def test_shards_become_shards_with_an_index_that_is_right(
    kind: str, to: Any, tmp_path: Path
) -> None:
    model, state = stored(kind)
    save_shards(tmp_path / "in", state, 20_000)
    describe(model, tmp_path / "in")
    pickles = sorted(file.name for file in (tmp_path / "in").glob("*.bin"))
    assert len(pickles) > 2
    recast.convert(tmp_path / "in", tmp_path / "out", to=to, verify="cpu", sync=False)
    names = [f"{name[len('pytorch_') : -len('.bin')]}.safetensors" for name in pickles]
    index = "model.safetensors.index.json"
    assert files(tmp_path / "out") == {"config.json", "recast.json", index, *names}
    said = json.loads((tmp_path / "out" / index).read_text())
    source = json.loads((tmp_path / "in" / "pytorch_model.bin.index.json").read_text())
    assert said["weight_map"] == {
        name: names[pickles.index(file)]
        for name, file in source["weight_map"].items()
        if name not in KINDS[kind].tied
    }
    held = {name: load_file(tmp_path / "out" / name) for name in names}
    assert {name: set(tensors) for name, tensors in held.items()} == {
        name: {key for key, file in said["weight_map"].items() if file == name} for name in names
    }
    sizes = [tensor.nbytes for tensors in held.values() for tensor in tensors.values()]
    assert said["metadata"]["total_size"] == sum(sizes)
    assert_computes(type(model), tmp_path / "out", state, to)


def test_the_model_of_the_pickle_itself_computes_the_same(tmp_path: Path) -> None:
    """transformers reads the pickle, too."""
    model, _ = saved("llama", tmp_path / "in")
    recast.convert(tmp_path / "in", tmp_path / "out", to="as-stored", sync=False)
    found = [type(model).from_pretrained(tmp_path / name) for name in ("in", "out")]
    assert torch.equal(*map(answer, found))


def test_a_pickle_beside_safetensors_stays_behind(tmp_path: Path) -> None:
    model, state = saved("llama", tmp_path / "in")
    model.save_pretrained(tmp_path / "in")
    report = recast.convert(tmp_path / "in", tmp_path / "out", to="bf16", sync=False)
    assert "pytorch_model.bin" not in files(tmp_path / "out")
    assert any("pytorch_model.bin" in warning for warning in report.warnings)
    assert_written(tmp_path / "out" / "model.safetensors", state, "bf16")


def test_what_a_trainer_writes_beside_the_model_stays_behind(tmp_path: Path) -> None:
    model, state = saved("llama", tmp_path / "in")
    optimizer = torch.optim.AdamW(model.parameters())
    save(optimizer.state_dict(), tmp_path / "in" / "optimizer.pt")
    save({"last_epoch": 3}, tmp_path / "in" / "scheduler.pt")
    save({"cpu": torch.get_rng_state()}, tmp_path / "in" / "rng_state.pth")
    recast.convert(tmp_path / "in", tmp_path / "out", to="bf16", sync=False)
    assert files(tmp_path / "out") >= {"config.json", "model.safetensors", "recast.json"}
    assert not any(name.startswith(("optimizer", "rng")) for name in files(tmp_path / "out"))
    assert_written(tmp_path / "out" / "model.safetensors", state, "bf16")
