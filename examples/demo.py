"""Convert a small random Llama to bf16 and show that nothing but the dtype changed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()


def write_model(folder: Path) -> None:
    """Save an fp32 Llama of about 50 MB in several shards, as transformers does."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="14MB")


def recast(folder: Path, *arguments: str) -> None:
    """Run the real command, so that its output looks as it does for a user."""
    print("\n$ recast", *arguments, flush=True)
    command = Path(sysconfig.get_path("scripts")) / "recast"
    subprocess.run([command, *arguments], cwd=folder, check=True)


def load(folder: Path) -> torch.nn.Module:
    """Load a model in the dtype it is stored in."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def same_weights(source: torch.nn.Module, result: torch.nn.Module) -> bool:
    """Whether every weight has the same bits as with torch's own cast."""
    expected, actual = source.state_dict(), result.state_dict()
    return expected.keys() == actual.keys() and all(
        torch.equal(tensor.to(torch.bfloat16).view(torch.int16), actual[name].view(torch.int16))
        for name, tensor in expected.items()
    )


@torch.inference_mode()
def same_logits(source: torch.nn.Module, result: torch.nn.Module) -> bool:
    """Whether the result computes the same bits as the source after torch's cast."""
    # source.to() would also round the rotary frequencies, which no checkpoint stores and every
    # loader keeps in fp32.
    for parameter in source.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    tokens = torch.arange(64).unsqueeze(0)
    expected, actual = source(tokens).logits, result(tokens).logits
    return torch.equal(expected.view(torch.int16), actual.view(torch.int16))


def megabytes(folder: Path) -> float:
    """Size of the safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def main() -> int:
    """Write, inspect, convert, load, compare."""
    with tempfile.TemporaryDirectory(prefix="recast-demo-") as temporary:
        folder = Path(temporary)
        write_model(folder / "model")
        recast(folder, "inspect", "model")
        recast(folder, "convert", "model", "model-bf16", "--to", "bf16")

        source, result = load(folder / "model"), load(folder / "model-bf16")
        before, after = megabytes(folder / "model"), megabytes(folder / "model-bf16")
        checks = {
            "transformers loads it as bf16": result.dtype == torch.bfloat16,
            "weights equal torch's cast, bit for bit": same_weights(source, result),
            "logits equal those of torch's cast, bit for bit": same_logits(source, result),
            f"safetensors: {before:.1f} MB before, {after:.1f} MB after": after < 0.51 * before,
        }

    print()
    for text, passed in checks.items():
        print("ok  " if passed else "FAIL", text)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
