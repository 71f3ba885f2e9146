"""Time `recast convert` against a script with torch: whole processes, side by side in one run.

The rounds alternate between the contestants, so that a slow minute of the machine is shared by
all of them. The first round warms the page cache and compares the outputs; it is not counted.
"""

import argparse
import filecmp
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECAST = str(Path(sysconfig.get_path("scripts")) / "recast")
TORCH_SCRIPT = str(Path(__file__).with_name("torch_script.py"))
TORCH_NAMES = {"fp16": "float16", "bf16": "bfloat16"}

HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS, SHARDS = 2048, 5632, 32_000, 8, 4


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama with 0.54 billion parameters."""
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            result[f"{prefix}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        result[f"{prefix}.mlp.gate_proj.weight"] = (INTERMEDIATE, HIDDEN)
        result[f"{prefix}.mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        result[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        result[f"{prefix}.input_layernorm.weight"] = (HIDDEN,)
        result[f"{prefix}.post_attention_layernorm.weight"] = (HIDDEN,)
    result["model.norm.weight"] = (HIDDEN,)
    result["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return result


def write_checkpoint(folder: Path) -> None:
    """Write the checkpoint in fp32, one shard in memory at a time."""
    import numpy as np
    from safetensors.numpy import save_file

    remaining, random = list(shapes().items()), np.random.default_rng(0)
    total = sum(4 * int(np.prod(shape)) for _, shape in remaining)
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    weight_map = {}
    for number in range(1, SHARDS + 1):
        name = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        shard: dict[str, np.ndarray] = {}
        while remaining and sum(tensor.nbytes for tensor in shard.values()) < total / SHARDS:
            tensor, shape = remaining.pop(0)
            shard[tensor] = random.standard_normal(shape, np.float32) * np.float32(0.02)
            weight_map[tensor] = name
        save_file(shard, unfinished / name, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"}
    (unfinished / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (unfinished / "config.json").write_text(json.dumps(config, indent=2))
    unfinished.rename(folder)


@dataclass
class Contestant:
    """A command, and what its counted runs took."""

    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Run the command once, from start to exit."""
        os.sync()
        start = time.perf_counter()
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds.append(time.perf_counter() - start)
        self.peak_mib.append(usage.ru_maxrss / 1024)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: {self.name} failed with exit code {process.returncode}")


def measure(contestants: list[Contestant], rounds: int, work: Path) -> None:
    """Run everyone in turn, `rounds` times after one that is not counted."""
    for number in range(rounds + 1):
        for contestant in contestants:
            print(f"round {number} of {rounds}: {contestant.name}", file=sys.stderr)
            dest = work / "output"
            contestant.run()
            if number == 0:
                dest.rename(work / f"first-{contestants.index(contestant)}")
                contestant.seconds.clear()
                contestant.peak_mib.clear()
            else:
                shutil.rmtree(dest)
        if number == 0:
            compare_outputs(work)


def compare_outputs(work: Path) -> None:
    """Stop unless all contestants wrote the same shards, byte for byte; delete them."""
    reference, *others = sorted(work.glob("first-*"))
    for shard in reference.glob("*.safetensors"):
        for other in others:
            if not filecmp.cmp(shard, other / shard.name, shallow=False):
                sys.exit(f"error: the contestants disagree on {shard.name}")
    for folder in (reference, *others):
        shutil.rmtree(folder)


def machine() -> str:
    """The machine and the versions the numbers belong to."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    versions = {"Python": platform.python_version(), "recast": version("recast-weights")}
    versions |= {name: version(name) for name in ("torch", "safetensors")}
    return (
        f"{processor}, {os.cpu_count()} CPUs; {platform.system()} {platform.release()}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )


def table(contestants: list[Contestant]) -> str:
    """Medians as Markdown; the last contestant is the one the others are compared with."""
    baseline = statistics.median(contestants[-1].seconds)
    lines = ["| | median | fastest | times faster | peak RSS |", "|---|--:|--:|--:|--:|"]
    for one in contestants:
        median = statistics.median(one.seconds)
        lines.append(
            f"| {one.name} | {median:.2f} s | {min(one.seconds):.2f} s "
            f"| {baseline / median:.1f} | {statistics.median(one.peak_mib):,.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Build the checkpoint if need be, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds, at least 3")
    parser.add_argument("--to", choices=TORCH_NAMES, default="bf16")
    parser.add_argument("--data", type=Path, default=ROOT / "bench-data")
    options = parser.parse_args()
    if options.rounds < 3:
        parser.error("--rounds: a median needs at least 3")

    source, work = options.data / "llama-0.5b-fp32", options.data / "work"
    if not source.exists():
        print("writing 2.2 GB of random fp32 weights (once)", file=sys.stderr)
        # In another process: a child's peak RSS starts from that of its parent.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_checkpoint, args=(source,)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("error: the checkpoint could not be written")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()

    dest = str(work / "output")
    convert = [RECAST, "convert", str(source), dest, "--to", options.to, "--quiet"]
    script = [sys.executable, TORCH_SCRIPT, str(source), dest, TORCH_NAMES[options.to]]
    contestants = [
        Contestant("recast convert", convert),
        Contestant("recast convert --no-sync", [*convert, "--no-sync"]),
        Contestant("torch, shard by shard (no sync)", script),
    ]
    try:
        measure(contestants, options.rounds, work)
    finally:
        shutil.rmtree(work)

    size = sum(file.stat().st_size for file in source.iterdir()) / 1e9
    print(f"{size:.2f} GB of fp32 in {SHARDS} shards to {options.to}, warm page cache,")
    print(f"{options.rounds} rounds after one that compared the outputs byte for byte.")
    print(f"{machine()}.\n\n{table(contestants)}\n")
    print("Peak RSS counts mapped pages of the source, which the kernel can take back any time.")


if __name__ == "__main__":
    main()
