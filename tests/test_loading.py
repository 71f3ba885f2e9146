"""docs/loading.md says in which dtype each loader brings a result up; here they do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recast
import torch
from blocks import ROOT
from safetensors.torch import save_file

ROW = re.compile(
    r"^\| (?P<loader>[^|`]*) ?\| `(?P<call>[^`]+)` \| (?P<dtype>\w+) \|$", re.MULTILINE
)
ROWS = [match.groupdict() for match in ROW.finditer((ROOT / "docs/loading.md").read_text())]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAME = "vit_tiny_patch16_224"
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
}


def bert(work: Path) -> Path:
    import transformers

    config = transformers.BertConfig(**SIZES, num_attention_heads=4)
    transformers.BertModel(config).save_pretrained(work)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]
    (work / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(vocab=str(work / "vocab.txt")).save_pretrained(work)
    return work


def autoencoder(**sizes: Any) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=[8], norm_num_groups=4, latent_channels=2, **sizes
    )


def pipeline(work: Path) -> Path:
    import diffusers

    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=[8], norm_num_groups=4,
        down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], layers_per_block=1,
    )  # fmt: skip
    vae = diffusers.VQModel(block_out_channels=[8], norm_num_groups=4, latent_channels=2)
    whole: Any = diffusers.LDMPipeline(vae, unet, diffusers.DDIMScheduler())
    whole.save_pretrained(work)
    return work


def of_safetensors(work: Path) -> tuple[Path, dict[str, Any]]:
    import safetensors.torch

    save_file({"a": torch.rand(4)}, work / "a.safetensors")
    return work / "a.safetensors", {"safetensors": safetensors}


def of_transformers(work: Path) -> tuple[Path, dict[str, Any]]:
    import transformers

    return bert(work), {"AutoModel": transformers.AutoModel}


def of_diffusers(work: Path) -> tuple[Path, dict[str, Any]]:
    diffusers = pytest.importorskip("diffusers")
    autoencoder().save_pretrained(work)
    return work, {"AutoencoderKL": diffusers.AutoencoderKL}


def of_pipelines(work: Path) -> tuple[Path, dict[str, Any]]:
    diffusers = pytest.importorskip("diffusers")
    return pipeline(work), {"DiffusionPipeline": diffusers.DiffusionPipeline}


def of_peft(work: Path) -> tuple[Path, dict[str, Any]]:
    peft = pytest.importorskip("peft")
    import transformers

    def base() -> Any:
        config = transformers.LlamaConfig(**SIZES, num_attention_heads=4)
        model: Any = transformers.LlamaForCausalLM(config)
        return model.to(torch.bfloat16)

    adapter = peft.LoraConfig(r=4, target_modules=["q_proj"])
    peft.get_peft_model(base().float(), adapter).save_pretrained(work)
    return work, {"PeftModel": peft.PeftModel, "base": base()}


def of_sentence_transformers(work: Path) -> tuple[Path, dict[str, Any]]:
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules as models

    words = models.Transformer(str(bert(work / "bert")))
    modules = [words, models.Pooling(32), models.Dense(32, 16)]
    library.SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(work / "all"))
    loads = lambda path: library.SentenceTransformer(path, device="cpu")  # noqa: E731
    return work / "all", {"SentenceTransformer": loads}


def of_timm(work: Path) -> tuple[Path, dict[str, Any]]:
    timm = pytest.importorskip("timm")
    save_file(timm.create_model(NAME).state_dict(), work / "vit.safetensors")
    return work / "vit.safetensors", {"timm": timm, "name": NAME}


SOURCES: dict[str, Callable[[Path], tuple[Path, dict[str, Any]]]] = {
    "safetensors": of_safetensors,
    "transformers": of_transformers,
    "diffusers 0.42, a model": of_diffusers,
    "diffusers 0.42, a pipeline": of_pipelines,
    "peft": of_peft,
    "sentence-transformers": of_sentence_transformers,
    "timm": of_timm,
}


def calls() -> list[tuple[str, str, str]]:
    """Of each row the loader, which an empty cell repeats, the call, and the dtype."""
    found, loader = [], ""
    for row in ROWS:
        loader = row["loader"].strip() or loader
        name = next(name for name in SOURCES if loader.startswith(name))
        found.append((name, row["call"], row["dtype"]))
    return found


def dtypes(loaded: Any) -> set[torch.dtype]:
    """Those of all floating weights; of an adapter, those of the adapter."""
    if hasattr(loaded, "components"):
        parts = [part for part in loaded.components.values() if isinstance(part, torch.nn.Module)]
        return set().union(*map(dtypes, parts))
    tensors = loaded if isinstance(loaded, dict) else loaded.state_dict()
    if any("lora_" in name for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if "lora_" in name}
    return {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}


def convert(source: Path, out: Path, **options: Any) -> str:
    """The path of the result, as a loader takes it."""
    recast.convert(source, out, to="bf16", **options)
    return str(out / source.name if source.is_file() else out)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # What they say of each other.
@pytest.mark.parametrize(("loader", "call", "dtype"), calls(), ids=[call for _, call, _ in calls()])
def test_a_loader_brings_a_result_up_as_the_page_says(
    loader: str, call: str, dtype: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    source, names = SOURCES[loader](tmp_path / "model")
    path = convert(source, tmp_path / "out")
    assert recast.inspect(path).not_loaded == []
    loaded = eval(call, {"torch": torch, "path": path, **names})
    assert dtypes(loaded) == {DTYPES[dtype]}


def test_the_page_has_every_loader_with_what_gives_bf16() -> None:
    assert {loader for loader, _, dtype in calls() if dtype == "bf16"} == set(SOURCES)


def test_a_component_of_a_pipeline_can_be_kept(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    path = convert(pipeline(tmp_path / "model"), tmp_path / "out", keep=["vqvae/*"])
    wanted = {"vqvae": torch.float32, "default": torch.bfloat16}
    loaded = diffusers.DiffusionPipeline.from_pretrained(path, dtype=wanted)
    assert dtypes(loaded.vqvae) == {torch.float32}
    assert dtypes(loaded.unet) == {torch.bfloat16}
