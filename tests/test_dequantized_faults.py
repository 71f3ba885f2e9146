"""A damaged or ambiguous quantized checkpoint is refused by file and tensor, before anything is
written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_formats import FP8, comfy, compressed, modelopt, scheme, shared_scale, tensors_of
from quantized_models import deepseek_v4, fine_grained, gpt_oss, lay, mistral, ragged
from safetensors.torch import load_file, save_file
from support import raw_header, recast_here

INDEX = "model.safetensors.index.json"
Change = Callable[[torch.Tensor], torch.Tensor | None]


def refused(source: Path, *said: str) -> str:
    """The error; nothing has been written, whatever the target."""
    text = ""
    for to in ("bf16", "fp16", "fp32"):
        run = recast_here("convert", source, source.with_name("out"), "--to", to)
        assert run.returncode == 65, run.stdout + run.stderr
        assert not source.with_name("out").exists()
        text = run.stderr
        for part in said:
            assert part in text
    return text


def rewritten(source: Path, name: str, change: Change) -> str:
    """Changes a tensor, or removes it where nothing is left; the name of its file."""
    for path in sorted(source.glob("*.safetensors")):
        tensors = load_file(path)
        if name in tensors:
            changed = change(tensors.pop(name))
            if changed is not None:
                tensors[name] = changed.contiguous()
            save_file(tensors, path, {"format": "pt"})
            if changed is None and (source / INDEX).exists():
                index = json.loads((source / INDEX).read_text())
                del index["weight_map"][name]
                (source / INDEX).write_text(json.dumps(index))
            return path.name
    raise AssertionError(f"there is no {name}")


def gone(_: torch.Tensor) -> None:
    return None


def replaced(*shape: int) -> Change:
    return lambda x: x.flatten()[:1].expand(torch.Size(shape).numel()).reshape(shape)


DOWN = "model.layers.0.mlp.down_proj"
KV_A = "model.layers.1.self_attn.kv_a_proj_with_mqa"
EXPERTS = "model.layers.1.mlp.experts"
# How the source is written, the tensor that is damaged, how, and the weight that it is a part of.
FAULTS: dict[str, tuple[Callable[[Path], Path], str, Change, str]] = {
    "no scale": (fine_grained, f"{DOWN}.weight_scale_inv", gone, f"{DOWN}.weight"),
    "no scale, ragged": (ragged, f"{KV_A}.weight_scale_inv", gone, f"{KV_A}.weight"),
    "no codes": (fine_grained, f"{DOWN}.weight", gone, f"{DOWN}.weight_scale_inv"),
    "a column of blocks less": (
        fine_grained,
        f"{DOWN}.weight_scale_inv",
        lambda x: x[:, :-1],
        f"{DOWN}.weight_scale_inv",
    ),
    "the ragged row of blocks missing": (
        ragged,
        f"{KV_A}.weight_scale_inv",
        lambda x: x[:-1],
        f"{KV_A}.weight_scale_inv",
    ),
    "a row of blocks more": (
        ragged,
        f"{KV_A}.weight_scale_inv",
        lambda x: torch.cat([x, x[:1]]),
        f"{KV_A}.weight_scale_inv",
    ),
    "a grid that is turned": (
        fine_grained,
        f"{DOWN}.weight_scale_inv",
        lambda x: x.t(),
        f"{DOWN}.weight_scale_inv",
    ),
    "a grid of one dimension": (
        fine_grained,
        f"{DOWN}.weight_scale_inv",
        lambda x: x.flatten(),
        f"{DOWN}.weight_scale_inv",
    ),
    "an empty scale": (
        mistral,
        f"{DOWN}.weight_scale_inv",
        lambda x: torch.zeros(0),
        f"{DOWN}.weight_scale_inv",
    ),
    "two scales for a matrix": (
        mistral,
        f"{DOWN}.weight_scale_inv",
        replaced(2),
        f"{DOWN}.weight_scale_inv",
    ),
    "a scale of integers": (
        mistral,
        f"{DOWN}.weight_scale_inv",
        lambda x: x.to(torch.int32),
        f"{DOWN}.weight_scale_inv",
    ),
    "experts without scales": (
        gpt_oss,
        f"{EXPERTS}.down_proj_scales",
        gone,
        f"{EXPERTS}.down_proj_blocks",
    ),
    "scales of an expert less": (
        gpt_oss,
        f"{EXPERTS}.down_proj_scales",
        lambda x: x[:-1],
        f"{EXPERTS}.down_proj_scales",
    ),
    "blocks of 15 bytes": (
        gpt_oss,
        f"{EXPERTS}.down_proj_blocks",
        lambda x: x[..., :-1],
        f"{EXPERTS}.down_proj_blocks",
    ),
    "NVFP4 without its second scale": (
        lambda folder: compressed(folder, scheme("NVFP4")),
        f"{DOWN}.weight_global_scale",
        gone,
        f"{DOWN}.weight_packed",
    ),
    "NVFP4 without its blocks' scales": (
        lambda folder: compressed(folder, scheme("NVFP4")),
        f"{DOWN}.weight_scale",
        gone,
        f"{DOWN}.weight_packed",
    ),
    "NVFP4 with a block less": (
        lambda folder: compressed(folder, scheme("NVFP4")),
        f"{DOWN}.weight_scale",
        lambda x: x[:, :-1],
        f"{DOWN}.weight_scale",
    ),
    "NVFP4 with several second scales": (
        lambda folder: compressed(folder, scheme("NVFP4")),
        f"{DOWN}.weight_global_scale",
        replaced(2),
        f"{DOWN}.weight_global_scale",
    ),
    "ModelOpt NVFP4 without its second scale": (
        lambda folder: modelopt(folder, "NVFP4"),
        f"{DOWN}.weight_scale_2",
        gone,
        f"{DOWN}.weight",
    ),
    "ModelOpt NVFP4 with a row less": (
        lambda folder: modelopt(folder, "NVFP4"),
        f"{DOWN}.weight_scale",
        lambda x: x[:-1],
        f"{DOWN}.weight_scale",
    ),
    "DeepSeek-V4's experts with a block less": (
        deepseek_v4,
        "model.layers.1.ffn.experts.0.w2.scale",
        lambda x: x[:, :-1],
        "model.layers.1.ffn.experts.0.w2.scale",
    ),
    "MXFP4 with groups of another size": (
        lambda folder: compressed(folder, scheme("MXFP4")),
        f"{DOWN}.weight_scale",
        lambda x: x.repeat(1, 2),
        f"{DOWN}.weight_scale",
    ),
    "no scale for several": (shared_scale, "embed.weight_scale", gone, "embed.tables.0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_file_and_its_tensor(name: str, tmp_path: Path) -> None:
    write, tensor, change, what = FAULTS[name]
    torch.manual_seed(0)
    source = write(tmp_path / "in")
    rewritten(source, tensor, change)
    # Codes and scales may be in different files: the one of the codes is named.
    layer = re.sub("[._](weight|scale|blocks).*", "", what)
    text = refused(source, what)
    assert any(path.name in text for path in source.glob("*.safetensors") if has(path, layer))


def has(path: Path, layer: str) -> bool:
    return any(name.startswith(layer) for name in load_file(path))


@pytest.mark.parametrize("is_indexed", [True, False])
def test_a_shard_of_scales_that_is_missing_is_an_error(is_indexed: bool, tmp_path: Path) -> None:
    source = tmp_path / "in"
    fine_grained(source)
    tensors = tensors_of(source)
    codes_file = "model-00001-of-00002.safetensors" if is_indexed else "weights.safetensors"
    scales = {name: x for name, x in tensors.items() if name.endswith("scale_inv")}
    codes = {name: x for name, x in tensors.items() if name not in scales}
    (source / "model.safetensors").unlink()
    save_file(codes, source / codes_file, {"format": "pt"})
    if is_indexed:
        where = dict.fromkeys(codes, codes_file)
        where |= dict.fromkeys(scales, "model-00002-of-00002.safetensors")
        (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
        refused(source, "model-00002-of-00002.safetensors")
    else:
        refused(source, codes_file, f"{DOWN}.weight")


CONFIGS: dict[str, tuple[Callable[[Path], Path], Callable[[dict[str, Any]], None], str]] = {
    "none for blocks": (
        fine_grained,
        lambda said: said.pop("quantization_config"),
        f"{DOWN}.weight",
    ),
    "no size of blocks": (
        fine_grained,
        lambda said: said["quantization_config"].pop("weight_block_size"),
        f"{DOWN}.weight",
    ),
    "blocks of another size": (
        fine_grained,
        lambda said: said["quantization_config"].update(weight_block_size=[128, 128]),
        f"{DOWN}.weight",
    ),
    "blocks whose sides are exchanged": (
        fine_grained,
        lambda said: said["quantization_config"].update(weight_block_size=[32, 64]),
        f"{DOWN}.weight",
    ),
    "blocks of no size": (
        fine_grained,
        lambda said: said["quantization_config"].update(weight_block_size=[0, 128]),
        f"{DOWN}.weight",
    ),
    "NVFP4 that nobody calls ModelOpt's": (
        lambda folder: modelopt(folder, "NVFP4", in_config=True),
        lambda said: said.pop("quantization_config"),
        f"{DOWN}.weight",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_shapes_alone_would_not_decide_is_refused(name: str, tmp_path: Path) -> None:
    write, change, what = CONFIGS[name]
    source = write(tmp_path / "in")
    said = json.loads((source / "config.json").read_text())
    change(said)
    (source / "config.json").write_text(json.dumps(said))
    refused(source, what)


def test_the_swizzled_nvfp4_of_comfyui_is_refused(tmp_path: Path) -> None:
    """Its scales are in another order, and the other half of a byte comes first."""
    told = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    tensors = {
        "m.weight": torch.zeros(128, 32, dtype=torch.uint8),
        "m.weight_scale": torch.ones(128, 4).to(FP8),
        "m.weight_scale_2": torch.tensor(0.1),
        "m.comfy_quant": told,
    }
    said = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}
    for at, config in enumerate((None, said)):
        refused(lay(tmp_path / str(at) / "in", tensors, config), "m.weight")
    del tensors["m.comfy_quant"]
    source = lay(tmp_path / "metadata" / "in", tensors, said)
    metadata = {"format": "pt", "quantization": "nvfp4", "_quantization_metadata": "{}"}
    for keys in (metadata, dict(reversed(metadata.items()))):
        data = (source / "model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = {**json.loads(data[8 : 8 + size]), "__metadata__": keys}
        (source / "model.safetensors").write_bytes(raw_header(header) + data[8 + size :])
        refused(source, "m.weight", "in tiles")


def test_nvfp4_whose_inputs_are_scaled_too_is_refused(tmp_path: Path) -> None:
    """Without that scale the weight alone is not what the model multiplies by."""
    source = modelopt(tmp_path / "in", "NVFP4", in_config=True)
    tensors = tensors_of(source)
    tensors[f"{DOWN}.pre_quant_scale"] = torch.ones(192)
    for path in source.glob("*.safetensors*"):
        path.unlink()
    lay(source, tensors, None)
    refused(source, f"{DOWN}.weight", "pre_quant_scale")


def test_the_swizzled_mxfp8_of_comfyui_is_refused(tmp_path: Path) -> None:
    told = torch.tensor(list(b'{"format": "mxfp8"}'), dtype=torch.uint8)
    tensors = {
        "m.weight": torch.zeros(128, 128).to(FP8),
        "m.weight_scale": torch.full((128, 4), 127, dtype=torch.uint8),
        "m.comfy_quant": told,
    }
    refused(lay(tmp_path / "in", tensors, None), "m.weight")


def test_one_damaged_weight_is_enough_to_refuse_all(tmp_path: Path) -> None:
    source = comfy(tmp_path / "in", "old")
    file = rewritten(source, "blocks.0.mlp.out.scale_weight", gone)
    refused(source, file, "blocks.0.mlp.out.weight")


def test_two_weights_of_an_index_never_get_the_same_name(tmp_path: Path) -> None:
    """A loader would take either, and the index would name one twice."""
    source = compressed(tmp_path / "in", scheme("NVFP4"))
    tensors = tensors_of(source)
    for path in source.glob("*.safetensors*"):
        path.unlink()
    other = {f"{DOWN}.weight": torch.ones(2, 2)}
    names = {"model-00001-of-00002.safetensors": tensors, "model-00002-of-00002.safetensors": other}
    for file, own in names.items():
        save_file(own, source / file, {"format": "pt"})
    where = {name: file for file, own in names.items() for name in own}
    (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    refused(source, INDEX, f"{DOWN}.weight_packed", f"would be called '{DOWN}.weight'")
