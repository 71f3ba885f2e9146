"""Pickles that other libraries than transformers write: each loads the result, and computes with it
what it computes with the source."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from safetensors.torch import load_file
from saved_by_torch import assert_written, load, save, save_shards
from support import files
from test_loading import NAME, SIZES, autoencoder, bert
from test_pickled_models import answer

BIN, RESULT = "pytorch_model.bin", "model.safetensors"


def as_stored(source: Path, out: Path) -> Path:
    recast.convert(source, out, to="as-stored", verify="cpu", sync=False)
    return out


def pickled(folder: Path) -> None:
    """Makes a pickle of every safetensors file in a folder."""
    for file in sorted(folder.rglob("*.safetensors")):
        save(load_file(file), file.with_name(BIN))
        file.unlink()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # What they say of each other.
def test_peft_loads_an_adapter_that_was_a_pickle(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    def base() -> Any:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SIZES, num_attention_heads=4)
        )

    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base(), config)
    adapted.save_pretrained(tmp_path / "in", safe_serialization=False)
    file = tmp_path / "in" / "adapter_model.bin"
    assert file.exists()
    out = as_stored(tmp_path / "in", tmp_path / "out")
    assert_written(out / "adapter_model.safetensors", load(file), "as-stored")
    found = peft.PeftModel.from_pretrained(base(), out)
    assert torch.equal(answer(found), answer(adapted))
    assert not torch.equal(answer(found), answer(base()))


@pytest.mark.parametrize("shards", [False, True])
def test_diffusers_loads_a_component_that_was_a_pickle(shards: bool, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = autoencoder().eval()
    folder = tmp_path / "in" / "vae"
    model.save_pretrained(folder, safe_serialization=False)
    stem = "diffusion_pytorch_model"
    assert (folder / f"{stem}.bin").exists()
    if shards:
        (folder / f"{stem}.bin").unlink()
        save_shards(folder, model.state_dict(), 10_000, stem)
    listed = {"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "in" / "model_index.json").write_text(json.dumps(listed))
    out = as_stored(tmp_path / "in", tmp_path / "out") / "vae"
    if shards:
        assert f"{stem}.safetensors.index.json" in files(out)
        assert f"{stem}-00002-of-{len(list(folder.glob('*.bin'))):05}.safetensors" in files(out)
    else:
        assert_written(out / f"{stem}.safetensors", load(folder / f"{stem}.bin"), "as-stored")
    assert not any(".bin" in name for name in files(out))
    found = diffusers.AutoencoderKL.from_pretrained(out).state_dict()
    state = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def sentences(folder: Path) -> Any:
    """A transformer, the mean of its states, and a layer of the library's own."""
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    words = modules.Transformer(str(bert(folder.with_name("bert"))))
    parts = [words, modules.Pooling(32), modules.Dense(32, 16)]
    library.SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder))
    return library


def embedded(library: Any, folder: Path) -> torch.Tensor:
    model = library.SentenceTransformer(str(folder), device="cpu")
    tokens = torch.arange(1, 25).reshape(2, 12)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with torch.inference_mode():
        found: torch.Tensor = model(inputs)["sentence_embedding"]
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_sentence_transformers_loads_layers_that_were_pickles(tmp_path: Path) -> None:
    source = tmp_path / "in"
    library = sentences(source)
    expected = embedded(library, source)
    pickled(source)
    assert files(source) >= {BIN, f"2_Dense/{BIN}"}
    out = as_stored(source, tmp_path / "out")
    assert files(out) >= {RESULT, f"2_Dense/{RESULT}"}
    assert_written(out / "2_Dense" / RESULT, load(source / "2_Dense" / BIN), "as-stored")
    assert not any(name.endswith(".bin") for name in files(out))
    assert torch.equal(embedded(library, out), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_that_is_only_a_pickle_is_not_lost(tmp_path: Path) -> None:
    """The files of many such models were not all converted: no safetensors in its own folder."""
    source = tmp_path / "in"
    library = sentences(source)
    expected = embedded(library, source)
    pickled(source / "2_Dense")
    assert files(source) >= {RESULT, f"2_Dense/{BIN}"}
    out = as_stored(source, tmp_path / "out")
    assert files(out) >= {RESULT, f"2_Dense/{RESULT}"}
    assert torch.equal(embedded(library, out), expected)


def test_timm_loads_a_file_that_was_a_pickle(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(NAME).eval()
    file = save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "vit.pth")
    out = as_stored(file, tmp_path / "out") / "vit.safetensors"
    assert_written(out, model.state_dict(), "as-stored")
    found = timm.create_model(NAME, checkpoint_path=str(out)).eval()
    image = torch.randn(1, *model.default_cfg["input_size"])
    with torch.inference_mode():
        assert torch.equal(found(image), model(image))


def test_a_llama_as_its_makers_publish_it_is_read(tmp_path: Path) -> None:
    """`consolidated.00.pth` alone; one of several is a part of every tensor, and refused."""
    tensors = {"layers.0.attention.wq.weight": torch.randn(8, 8).bfloat16()}
    file = save(tensors, tmp_path / "in" / "consolidated.00.pth")
    (tmp_path / "in" / "params.json").write_text('{"dim": 8}')
    out = as_stored(tmp_path / "in", tmp_path / "out")
    assert files(out) == {"consolidated.00.safetensors", "params.json", "recast.json"}
    assert_written(out / "consolidated.00.safetensors", tensors, "as-stored")
    shutil.copy(file, file.with_name("consolidated.01.pth"))
    with pytest.raises(recast.InputError, match=r"consolidated\.0[01]\.pth"):
        recast.plan(tmp_path / "in", to="bf16")
