"""Which tensors verification takes for a quantized weight, and which block a scale is that of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from judged import (
    BLOCKS,
    E8M0,
    FP8,
    Tensors,
    agrees,
    codes,
    found,
    gone,
    judged,
    loop,
    number,
    packed,
    products,
    save,
    scales,
)
from recast.verification import labels
from recast.verification.quantized import find


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16", "F8_E8M0", "U8"])
@pytest.mark.parametrize("block", [(128, 128), (64, 32), (1, 32), (3, 5)])
def test_the_block_is_that_of_the_config(block: tuple[int, int], kind: str, tmp_path: Path) -> None:
    rows, columns = 131, 70
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    exponents = torch.randint(90, 150, grid, dtype=torch.uint8)
    scale = {
        "F32": scales(*grid),
        "BF16": scales(*grid).bfloat16(),
        "F16": scales(*grid).half(),
        "F8_E8M0": exponents.view(E8M0),
        "U8": exponents,
    }[kind]
    weight = codes(rows, columns)
    said = {"text_config": {"quantization_config": {"weight_block_size": list(block)}}}
    root = save(tmp_path / "model", {"m.weight": weight, "m.weight_scale_inv": scale}, config=said)
    expected = loop(
        (rows, columns),
        lambda r, c: (number(weight, r, c), number(scale, r // block[0], c // block[1])),
    )
    assert agrees(found(root)["m.weight"], expected)


def test_another_block_of_the_same_grid_gives_other_values(tmp_path: Path) -> None:
    # 192 rows are 2 blocks of 128 as of 96: only the config says which.
    tensors = {"m.weight": torch.ones(192, 4).to(FP8), "m.weight_scale_inv": scales(2, 1)}
    made = []
    for rows in (128, 96):
        said = {"quantization_config": {"weight_block_size": [rows, 128]}}
        root = save(tmp_path / str(rows), tensors, config=said)
        made.append(products(found(root)["m.weight"]))
    assert torch.equal(made[0][:96], made[1][:96])
    assert torch.equal(made[0][128:], made[1][128:])
    assert not (made[0][96:128] == made[1][96:128]).any()
    assert found(save(tmp_path / "unsaid", tensors)) == {}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("m.weight", "m.weight_scale_inv"),
        ("m.weight", "m.weight_scale"),
        ("m.weight", "m.scale"),
        ("m.weight", "m.qscale_weight"),
        ("m.weight", "m.scale_weight"),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale"),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale_inv"),
        ("experts.down_proj", "experts.down_proj_weight_scale"),
        ("table.3.weight", "table.weight_scale"),
    ],
)
def test_every_name_of_a_scale_is_known(name: str, scale: str, tmp_path: Path) -> None:
    weight, one = codes(4, 4), scales(1)
    layer = name.removesuffix(".weight")
    beside = {f"{layer}.input_scale": scales(1), f"{layer}_activation_scale": scales(1)}
    beside |= {"attention.k_scale": scales(1), "scaled_fp8": codes(2), "n.comfy_quant": packed(9)}
    plain = {"m.logit_scale": scales(1), "m.bias": scales(4), "n.layer_scale": scales(4)}
    # Those of other layers, and what is no single number, may be parameters like any other.
    plain |= {"n.input_scale": scales(1), "attention.q_scale": scales(4), "m.klok_scale": scales(1)}
    root = save(tmp_path / "model", {name: weight, scale: one, **beside, **plain})
    expected = loop((4, 4), lambda *at: (number(weight, *at), number(one, 0)))
    assert agrees(found(root)[name], expected)
    assert gone(root) == {scale, *beside}


def test_one_scale_may_be_that_of_several_and_in_another_shard(tmp_path: Path) -> None:
    tables = {f"table.{number}.weight": codes(4, 4) for number in range(3)}
    own = {"m.weight": codes(4, 4)}
    shared = {"table.weight_scale": scales(1)}
    # Each `m.weight` has the scale of its own shard.
    near = [{"m.weight_scale": scales(1)} for _ in range(2)]
    root = save(tmp_path / "model", tables | own | near[0], shared, own | near[1])
    weights = find(*judged(root))
    assert len(weights) == 5
    for (file, name), weight in weights.items():
        number_ = "m.weight_scale" if name == "m.weight" else "table.weight_scale"
        assert weight.scale.key[1] == number_
        assert (weight.scale.key[0] == file) == (name == "m.weight")


def test_a_scale_that_is_in_several_other_shards_is_none(tmp_path: Path) -> None:
    shards = [{"m.weight": codes(4, 4)}, *({"m.weight_scale": scales(1)} for _ in range(2))]
    assert found(save(tmp_path / "model", *shards)) == {}


def test_a_file_with_another_copy_of_a_weight_has_its_scale_for_itself(tmp_path: Path) -> None:
    scaled = {"m.weight": codes(4, 4), "m.weight_scale": scales(1)}
    root = save(tmp_path / "model", {"m.weight": codes(4, 4)}, scaled)
    assert list(find(*judged(root))) == [("model-1.safetensors", "m.weight")]


def test_labels_above_a_folder_count(tmp_path: Path) -> None:
    root = save(tmp_path / "model", config=BLOCKS)
    tensors = {"m.weight": codes(200, 4), "m.weight_scale_inv": scales(2, 1)}
    save(root / "a", tensors, config={})
    save(root / "b", tensors, config={"quantization_config": {"weight_block_size": [100, 128]}})
    # Two sizes fit the second, and nothing says which one is meant.
    (name,) = find(*judged(root))
    assert name == (str(Path("a", "model-0.safetensors")), "m.weight")


def test_rotated_weights_are_not_found(tmp_path: Path) -> None:
    tensors = {"m.weight": codes(4, 4), "m.weight_scale": scales(1)}
    transforms: dict[str, dict[str, Any]] = {"none": {}, "some": {"config_groups": {}}}
    for name, transform in transforms.items():
        said = {"quantization_config": {"transform_config": transform}}
        assert bool(found(save(tmp_path / name, tensors, config=said))) == (name == "none")


def test_swizzled_nvfp4_without_a_label_is_not_taken_for_modelopts(tmp_path: Path) -> None:
    tensors = {"m.weight": packed(4, 16), "m.weight_scale": codes(4, 2)}
    root = save(tmp_path / "model", {**tensors, "m.weight_scale_2": scales(1)})
    assert found(root) == {}


GROUPS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "block": ({"strategy": "block", "block_structure": [4, 8]}, (4, 8)),
    "group": ({"strategy": "group", "group_size": 5}, (1, 5)),
    "text": ({"block_structure": "4x8"}, (4, 8)),
}


@pytest.mark.parametrize("strategy", GROUPS)
def test_the_groups_of_compressed_tensors_state_the_block(strategy: str, tmp_path: Path) -> None:
    weights, block = GROUPS[strategy]
    said = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    weight, scale = codes(10, 20), scales(-(-10 // block[0]), -(-20 // block[1])).bfloat16()
    root = save(
        tmp_path / "model",
        {"m.weight": weight, "m.weight_scale": scale},
        config={"compression_config": said},
    )
    expected = loop(
        (10, 20), lambda r, c: (number(weight, r, c), number(scale, r // block[0], c // block[1]))
    )
    assert agrees(found(root)["m.weight"], expected)


def test_a_group_that_names_the_module_counts(tmp_path: Path) -> None:
    def group(target: str, rows: int) -> dict[str, Any]:
        return {"targets": [target], "weights": {"block_structure": [rows, 128]}}

    tensors = {"m.weight": torch.ones(192, 4).to(FP8), "m.weight_scale": scales(2, 1)}
    config = {"quantization_config": {"config_groups": {"a": group("Linear", 128)}}}
    groups = config["quantization_config"]["config_groups"]
    assert found(save(tmp_path / "1", tensors, config=config))["m.weight"].scale.blocks[0] == 128
    groups["b"] = group("re:^m$", 96)
    assert found(save(tmp_path / "2", tensors, config=config))["m.weight"].scale.blocks[0] == 96
    groups["b"] = group("Other", 96)
    assert found(save(tmp_path / "3", tensors, config=config)) == {}


SAID: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "ModelOpt MXFP8": ("hf_quant_config", {"quantization": {"quant_algo": "MXFP8"}}, (1, 32)),
    "ModelOpt's blocks": (
        "hf_quant_config",
        {"quantization": {"quant_algo": "FP8_PB_WO"}},
        (128, 128),
    ),
    "a group size": (
        "hf_quant_config",
        {"quantization": {"quant_algo": "X", "group_size": 48}},
        (1, 48),
    ),
    "a layer's algorithm": (
        "hf_quant_config",
        {"quantization": {"quantized_layers": {"m": {"quant_algo": "MXFP8"}, "n": {}}}},
        (1, 32),
    ),
    "the algorithm in a config": (
        "config",
        {"quantization_config": {"quant_algo": "MXFP8"}},
        (1, 32),
    ),
    "a group's format": (
        "config",
        {"quantization_config": {"config_groups": {"g": {"format": "mxfp8-quantized"}}}},
        (1, 32),
    ),
    "one of two layers": (
        "hf_quant_config",
        {
            "quantized_layers": {
                "m": {"quant_algo": "X", "group_size": 40},
                "n": {"quant_algo": "X", "group_size": 33},
            }
        },
        (1, 40),
    ),
    "a format": ("config", {"quantization_config": {"format": "mxfp8-quantized"}}, (1, 32)),
    "a method": ("config", {"quantization_config": {"quant_method": "mxfp8"}}, (1, 32)),
}


@pytest.mark.parametrize("said", SAID)
def test_formats_and_algorithms_state_the_block(said: str, tmp_path: Path) -> None:
    file, value, block = SAID[said]
    weight = codes(130, 96)
    scale = scales(-(-130 // block[0]), -(-96 // block[1]))
    root = save(tmp_path / "model", {"m.weight": weight, "m.weight_scale": scale}, **{file: value})
    expected = loop(
        (130, 96), lambda r, c: (number(weight, r, c), number(scale, r // block[0], c // block[1]))
    )
    assert agrees(found(root)["m.weight"], expected)


def test_what_is_said_of_each_layer_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many layers as weights, and their names may not be those of the weights."""
    layers = {f"model.{n}": {"quant_algo": "FP8_PB_WO"} for n in range(100)}
    read: list[Any] = []
    algorithm = labels._of_algorithm

    def counted(said: Any) -> Any:
        read.append(said)
        return algorithm(said)

    monkeypatch.setattr(labels, "_of_algorithm", counted)
    said = labels.Labels([{"quantized_layers": layers}])
    assert all(said.blocks(f"{n}") == [(128, 128)] for n in range(100))
    assert len(read) == 101


def test_modelopts_blocks_may_keep_their_extents_as_ones(tmp_path: Path) -> None:
    weight, scale = codes(130, 200), scales(2, 1, 2, 1)
    said = {"quantization": {"quant_algo": "FP8_PB_WO"}}
    root = save(
        tmp_path / "model", {"m.weight": weight, "m.weight_scale": scale}, hf_quant_config=said
    )
    expected = loop(
        (130, 200), lambda r, c: (number(weight, r, c), number(scale, r // 128, 0, c // 128, 0))
    )
    assert agrees(found(root)["m.weight"], expected)


@pytest.mark.parametrize(
    "tensors",
    [
        {"m.weight": codes(4, 4)},
        {"m.weight": codes(4, 4), "m.weight_scale": scales(3, 1)},
        {"m.weight": codes(4, 4), "m.weight_scale": scales(5)},
        {"m.weight": codes(200, 4), "m.weight_scale_inv": scales(1, 2)},
        {"m.weight": codes(200, 4), "m.weight_scale_inv": scales(3, 1)},
        {"m.weight": codes(4, 4), "m.weight_scale": torch.ones(4, dtype=torch.int32)},
        {"m.weight": codes(4, 4), "m.weight_scale": scales(1), "m.weight_zero_point": scales(1)},
        {"m.weight": codes(4, 4), "m.weight_scale": scales(1), "m.pre_quant_scale": scales(4)},
        {"t.1.weight": codes(4, 4), "t.weight_scale": scales(4)},
        {"m.w_blocks": packed(2, 6, 3, 16), "m.w_scales": packed(2, 6, 2)},
        {"m.w_blocks": packed(2, 6, 3, 16), "m.w_scales": packed(1)},
        {"m.weight_packed": packed(4, 16), "m.weight_scale": packed(4, 2)},
        {"m.weight": packed(4, 16).view(torch.int8), "m.scale": scales(4, 1)},
        {"m.weight": torch.zeros(4, 4, dtype=torch.int8), "m.weight_scale": scales(4, 1)},
        {"m.qweight": torch.zeros(4, 4, dtype=torch.int32), "m.scales": scales(4, 1)},
    ],
)
def test_what_does_not_fit_is_not_found(tensors: Tensors, tmp_path: Path) -> None:
    assert found(save(tmp_path / "model", tensors, config=BLOCKS)) == {}
