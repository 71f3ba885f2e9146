"""What a loader takes of a directory is what `inspect` counts; the judges are the loaders."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import recast
import torch
from conftest import Run, Save
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
NAME = "model.safetensors"
HALF = "model-{}-of-00002.safetensors"


def marked(tensors: Mapping[str, torch.Tensor], value: float) -> Tensors:
    """The same tensors, all of one value, by which they are known again."""
    return {name: torch.full_like(tensor, value) for name, tensor in tensors.items()}


def write_shards(model: Path, tensors: Tensors, stem: str = "model", folder: str = "") -> None:
    """Two shards with an index, as `save_pretrained` writes them."""
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{folder}{stem}-{number:05}-of-00002.safetensors"
        (model / shard).parent.mkdir(exist_ok=True)
        save_file({name: tensors[name] for name in part}, model / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (model / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def counted(model: Path) -> set[str]:
    """The shards that `inspect` counts."""
    found = recast.inspect(model)
    every = {str(path.relative_to(model)) for path in model.rglob("*.safetensors")}
    left = set(found.not_loaded)
    assert left <= every
    assert found.files == len(every - left)
    loaded = [load_file(model / file) for file in every - left]
    assert found.parameters == sum(t.numel() for tensors in loaded for t in tensors.values())
    return every - left


def loaded_by_transformers(model: Path) -> float:
    """The value that marks the files transformers loads."""
    import transformers

    found = transformers.AutoModelForCausalLM.from_pretrained(model)
    values = {float(value) for tensor in found.state_dict().values() for value in tensor.unique()}
    assert len(values) == 1
    return values.pop()


@pytest.fixture
def plain(saved: Save, tmp_path: Path) -> tuple[Path, Tensors]:
    """A directory with the config of a Llama and no weights, and the weights."""
    model = tmp_path / "model"
    shutil.copytree(saved("llama", "fp32"), model)
    tensors: Tensors = {}
    for shard in model.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (model / f"{NAME}.index.json").unlink()
    return model, tensors


def test_transformers_takes_the_single_file_and_leaves_shards_and_copies(
    plain: tuple[Path, Tensors],
) -> None:
    model, tensors = plain
    save_file(marked(tensors, 1), model / NAME, {"format": "pt"})
    write_shards(model, marked(tensors, 2))
    save_file(marked(tensors, 3), model / "model.fp16.safetensors", {"format": "pt"})
    save_file(marked(tensors, 4), model / "consolidated.safetensors", {"format": "pt"})
    (model / "checkpoint-5").mkdir()
    save_file(marked(tensors, 5), model / "checkpoint-5" / NAME, {"format": "pt"})
    assert loaded_by_transformers(model) == 1
    assert counted(model) == {NAME}


def test_transformers_takes_the_shards_that_the_index_names(plain: tuple[Path, Tensors]) -> None:
    model, tensors = plain
    write_shards(model, marked(tensors, 2))
    save_file(marked(tensors, 4), model / "consolidated.safetensors", {"format": "pt"})
    assert loaded_by_transformers(model) == 2
    assert counted(model) == {HALF.format("00001"), HALF.format("00002")}


def test_shards_in_a_folder_are_taken_and_converted(
    plain: tuple[Path, Tensors], tmp_path: Path
) -> None:
    model, tensors = plain
    write_shards(model, marked(tensors, 2), folder="shards/")
    assert loaded_by_transformers(model) == 2
    assert counted(model) == {f"shards/{HALF.format(n)}" for n in ("00001", "00002")}
    recast.convert(model, tmp_path / "out", to="bf16", verify="cpu")
    assert loaded_by_transformers(tmp_path / "out") == 2
    assert recast.verify(model, tmp_path / "out").passed


def test_an_index_may_name_models_in_folders_below(plain: tuple[Path, Tensors]) -> None:
    model, tensors = plain
    names = sorted(tensors)
    shards = {"a": f"a/{NAME}", "b": f"b/{NAME}"}
    for shard, part in zip(shards.values(), (names[::2], names[1::2]), strict=True):
        (model / shard).parent.mkdir()
        save_file({n: tensors[n] * 0 + 2 for n in part}, model / shard, {"format": "pt"})
    weight_map = dict.fromkeys(names[::2], shards["a"]) | dict.fromkeys(names[1::2], shards["b"])
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (model / f"{NAME}.index.json").write_text(json.dumps(index))
    save_file(marked(tensors, 3), model / "copy.safetensors", {"format": "pt"})
    assert loaded_by_transformers(model) == 2
    assert counted(model) == set(shards.values())


@pytest.mark.parametrize("name", ["consolidated.safetensors", "half.safetensors.index.json"])
def test_the_file_that_a_config_names_is_taken_first(
    plain: tuple[Path, Tensors], name: str
) -> None:
    model, tensors = plain
    save_file(marked(tensors, 1), model / NAME, {"format": "pt"})
    write_shards(model, marked(tensors, 2), stem="half")
    save_file(marked(tensors, 4), model / "consolidated.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text()) | {"transformers_weights": name}
    (model / "config.json").write_text(json.dumps(config))
    taken = {4: {name}, 2: {f"half-{n:05}-of-00002.safetensors" for n in (1, 2)}}
    assert counted(model) == taken[int(loaded_by_transformers(model))]


def test_a_pipeline_takes_all_networks_of_a_component(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = tmp_path / "model"
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    more = {"cross_attention_dim": 4, "conditioning_embedding_out_channels": (16,)}
    nets = [diffusers.ControlNetModel(**sizes, **blocks, **more) for _ in range(2)]
    diffusers.MultiControlNetModel(nets).save_pretrained(str(model / "controlnet"))
    shutil.copytree(model / "controlnet", model / "controlnet_old")
    listed = {"_class_name": "X", "controlnet": ["diffusers", "MultiControlNetModel"]}
    (model / "model_index.json").write_text(json.dumps(listed))
    found = diffusers.MultiControlNetModel.from_pretrained(str(model / "controlnet"))
    folders = ["controlnet", "controlnet_1"]
    assert len(found.nets) == len(folders)
    assert counted(model) == {f"{it}/diffusion_pytorch_model.safetensors" for it in folders}


def test_diffusers_takes_the_index_before_the_single_file(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model, stem = tmp_path / "model", "diffusion_pytorch_model"
    sizes = {"block_out_channels": [8], "norm_num_groups": 4, "latent_channels": 2}
    diffusers.AutoencoderKL(**sizes).save_pretrained(model)
    tensors = load_file(model / f"{stem}.safetensors")
    write_shards(model, marked(tensors, 2), stem=stem)
    save_file(marked(tensors, 1), model / f"{stem}.safetensors", {"format": "pt"})
    found = diffusers.AutoencoderKL.from_pretrained(model)
    assert {
        float(value) for tensor in found.state_dict().values() for value in tensor.unique()
    } == {2.0}
    assert counted(model) == {f"{stem}-{n:05}-of-00002.safetensors" for n in (1, 2)}


def test_what_is_not_loaded_is_converted_named_and_not_in_the_gpu_memory(
    saved: Save, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved("tied", "fp32"), model)
    alone = recast.convert(model, tmp_path / "alone", to="bf16")
    shutil.copy(model / NAME, model / "consolidated.safetensors")
    both = recast.convert(model, tmp_path / "both", to="bf16")
    assert both.gpu_memory == alone.gpu_memory
    assert both.warnings == [
        "converted too, though transformers, diffusers and peft take other files of this "
        "directory: consolidated.safetensors"
    ]
    copy = load_file(tmp_path / "both" / "consolidated.safetensors")
    assert {tensor.dtype for tensor in copy.values()} == {torch.bfloat16}


def test_an_index_may_name_a_tensor_that_loaders_tie(saved: Save, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved("tied", "fp32"), model)
    tensors = load_file(model / NAME)
    (model / NAME).unlink()
    assert "lm_head.weight" not in tensors
    write_shards(model, tensors)
    path = model / f"{NAME}.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = HALF.format("00002")
    path.write_text(json.dumps(index))
    report = recast.convert(model, tmp_path / "out", to="bf16", verify="cpu")
    assert report.warnings == [
        "named in an index, but in no shard; loaders tie them to the embedding: lm_head.weight"
    ]
    written = json.loads((tmp_path / "out" / path.name).read_text())
    assert written["weight_map"] == index["weight_map"]
    assert written["metadata"]["total_size"] == index["metadata"]["total_size"] // 2
    assert recast.verify(model, tmp_path / "out", loader="transformers").passed

    # Where the config says that nothing is tied, the download is incomplete.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(recast.IndexFileError, match=r"does not hold tensor 'lm_head\.weight'"):
        recast.plan(model, to="bf16")


def test_a_numbered_shard_that_is_missing_is_named_without_an_index_too(
    plain: tuple[Path, Tensors], run: Run
) -> None:
    model, tensors = plain
    write_shards(model, tensors)
    (model / f"{NAME}.index.json").unlink()
    run("convert", model, model.parent / "out", "--to", "bf16", codes=(0,))
    (model / HALF.format("00001")).unlink()
    error = run("inspect", model, codes=(65,))
    assert f"shard '{HALF.format('00001')}' is missing, and no index lists the shards" in error
