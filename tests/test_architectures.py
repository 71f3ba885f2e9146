"""Many model types, as transformers saves them: the result is what transformers makes itself.

The judge is transformers, which loads the source and casts it, its list of modules that stay in
fp32 included.
"""

from pathlib import Path
from typing import Any

import pytest
import recast
import torch
import transformers
from recast.options import FloatName
from tensors import DTYPES

SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
PIXELS = {**SMALL, "image_size": 32, "patch_size": 8}
GROUPED = {**SMALL, "num_key_value_heads": 2}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DEEPSEEK = {
    **SMALL,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
SPEECH = {
    **SMALL,
    "vocab_size": 32,
    "conv_dim": (32, 32),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 200, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "clip": {"text_config": SMALL, "vision_config": PIXELS, "projection_dim": 16},
    "deepseek_v3": DEEPSEEK,
    "falcon": SMALL,
    "gemma2": {**GROUPED, "head_dim": 8},
    "gemma3_text": {**GROUPED, "head_dim": 8},
    "gpt2": {"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_oss": {**GROUPED, "head_dim": 8, "num_local_experts": 4},
    "llava": {"text_config": {**GROUPED, "model_type": "llama"}, "vision_config": PIXELS},
    "mamba2": {**SMALL, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "opt": {**SMALL, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "phi3": GROUPED,
    "qwen2": GROUPED,
    "qwen3_moe": {**GROUPED, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16},
    "roberta": SMALL,
    "vit": PIXELS,
    "wav2vec2": SPEECH,
}


@pytest.fixture(scope="module", params=CONFIGS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights of each type, in fp32."""
    config = transformers.AutoConfig.for_model(request.param, **CONFIGS[request.param], **TOKENS)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param) / "model"
    model = transformers.AutoModel.from_config(config)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()  # also what begins as zeros or ones, which every dtype holds exactly
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("to", ["bf16", "fp16"])
def test_every_type_of_model_is_what_transformers_makes_of_it(
    to: FloatName, source: Path, tmp_path: Path
) -> None:
    report = recast.convert(source, tmp_path / "out", to=to, sync=False)
    assert report.audit["to_inf"] == 0
    ours = transformers.AutoModel.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    judge = transformers.AutoModel.from_pretrained(source, dtype=DTYPES[to]).state_dict()
    assert ours.keys() == judge.keys()
    assert [name for name in judge if ours[name].dtype != judge[name].dtype] == []
    assert [name for name in judge if not torch.equal(ours[name], judge[name])] == []
    for loader in ("safetensors", "transformers"):
        found = recast.verify(source, tmp_path / "out", device="cpu", full=True, loader=loader)
        assert found.passed, found.problems
