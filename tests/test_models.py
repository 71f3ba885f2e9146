"""A converted model computes, to the last bit, what torch's own cast of the model computes."""

from pathlib import Path
from typing import Any

import pytest
import recast
import torch
import transformers
from conftest import Save
from recast.options import FloatName
from tensors import DTYPES

LOADERS: dict[str, Any] = {
    "llama": transformers.LlamaForCausalLM,
    "t5": transformers.T5ForConditionalGeneration,
    "bert": transformers.BertModel,
}


def answer(kind: str, model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.arange(1, 25).reshape(2, 12)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if kind == "t5":
        inputs["decoder_input_ids"] = tokens[:, :5]
    torch.set_num_threads(1)
    with torch.inference_mode():
        output = model.eval()(**inputs)
    result: torch.Tensor = output.last_hidden_state if kind == "bert" else output.logits
    return result


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("to", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("source", ["fp32", "bf16"])
def test_transformers_computes_the_same_bits_from_the_result(
    kind: str, source: str, to: FloatName, saved: Save, tmp_path: Path
) -> None:
    recast.convert(saved(kind, source), tmp_path / "out", to=to, sync=False)
    converted = LOADERS[kind].from_pretrained(tmp_path / "out", dtype="auto")
    # The judge: transformers loads the source and casts it, its own keep list included.
    judge = LOADERS[kind].from_pretrained(saved(kind, source), dtype=DTYPES[to])
    assert converted.dtype == DTYPES[to]
    assert converted.config.dtype == DTYPES[to]
    ours, theirs = converted.state_dict(), judge.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    result, expected = answer(kind, converted), answer(kind, judge)
    assert result.isfinite().all()
    assert torch.equal(result, expected)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_result_computes_what_the_source_model_cast_by_torch_computes(
    kind: str, saved: Save, tmp_path: Path
) -> None:
    recast.convert(saved(kind, "fp32"), tmp_path / "out", to="bf16", sync=False)
    converted = LOADERS[kind].from_pretrained(tmp_path / "out", dtype="auto")
    source = LOADERS[kind].from_pretrained(saved(kind, "fp32"), dtype="auto")
    assert source.dtype == torch.float32
    # Buffers that no checkpoint stores (rotary frequencies) are computed in fp32 by every loader,
    # so the judge casts what is stored and leaves those.
    stored = source.state_dict()
    source.load_state_dict(
        {name: tensor.bfloat16() for name, tensor in stored.items()}, assign=True
    )
    source.tie_weights()
    result, expected = answer(kind, converted), answer(kind, source)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected)
    # The comparison means something: rounding did change the answer.
    unrounded = answer(kind, LOADERS[kind].from_pretrained(saved(kind, "fp32"), dtype="auto"))
    assert not torch.equal(result.float(), unrounded)
