"""Every model class of transformers and diffusers that can be made small: what do its loaders keep?

    python tests/sweep.py [--part I/N] [--only TYPE ...]

For each class and target, a small model of random values is saved in fp32. The judge is the
loader: a tensor on disk stays in fp32 when its values are still there, unrounded, after the model
was loaded in the target dtype. recast must keep all of these, and loading its result must give
what loading the source gives, tensor by tensor. None of the models is quantized, as it is saved
in fp32 and in bf16, so nothing may be said of that. Prints a line for each class, and at the end
the counts, the classes left out, each with the reason, and the failures; exits 1 when there is one.
"""

import argparse
import collections
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import recast
import small_models
import torch
import transformers
from recast.options import FloatName
from safetensors.torch import load_file
from small_models import LeftOut, itself, line

DTYPES: dict[FloatName, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Tensors = dict[str, torch.Tensor]


@dataclass
class Result:
    """What came of one class."""

    parameters: int = 0
    kept: collections.Counter[str] = field(default_factory=collections.Counter)
    """Tensors that the loader keeps in fp32, by target."""
    more: list[str] = field(default_factory=list)
    """Tensors that recast keeps though the loader casts them."""
    wrong: list[str] = field(default_factory=list)


Job = Callable[[Path], Result]


def on_disk(folder: Path) -> Tensors:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def stays(disk: Tensors, state: Tensors) -> set[str]:
    """The tensors on disk whose values are still in a loaded model."""
    wide = [tensor.flatten() for tensor in state.values() if tensor.dtype == torch.float32]
    values = torch.cat(wide) if wide else torch.empty(0)
    values = values.view(torch.int32).unique()
    kept = set()
    for name, tensor in disk.items():
        if tensor.dtype == torch.float32 and tensor.numel() and len(values):
            probe = tensor.flatten()[:: max(1, tensor.numel() // 7)][:8]
            probe = probe.contiguous().view(torch.int32)
            at = torch.searchsorted(values, probe).clamp(max=len(values) - 1)
            # One is enough: no other tensor has it, and no cast gives it.
            if bool((values[at] == probe).any()):
                kept.add(name)
    return kept


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether dtypes and bits are equal."""
    integers = INTEGERS[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(integers), other.view(integers))


def alarms(path: Path, to: FloatName) -> Iterator[str]:
    """What recast says of quantization in a model that has none."""
    for note in recast.inspect(path).notes:
        if "quantiz" in note:
            yield note
    try:
        warnings = recast.plan(path, to=to).warnings
    except recast.QuantizedError as error:
        yield error.message
    else:
        yield from (warning for warning in warnings if "quantiz" in warning)


def judge(cls: Any, build: Callable[[], Any], keyword: str, work: Path) -> Result:
    """Converts a small model of `cls` to each target and loads source and result."""
    result = Result()
    source = work / "source"
    with itself("build and save"):
        model = build()
        result.parameters = sum(parameter.numel() for parameter in model.parameters())
        small_models.fill(model)
        model.save_pretrained(source)
        del model
    disk = on_disk(source)
    for to, dtype in DTYPES.items():
        result.wrong += [f"{to}: {alarm}" for alarm in alarms(source, to)]
        with itself("load"):
            model = cls.from_pretrained(source, **{keyword: dtype})
        expected = model.state_dict()
        wanted = stays(disk, expected)
        tensors = recast.plan(source, to=to).tensors
        kept = {tensor.name for tensor in tensors if tensor.action == "keep"}
        result.kept[to] = len(wanted)
        result.wrong += [f"{to}: {name} is cast" for name in sorted(wanted - kept)]
        result.more += [f"{to}: {name}" for name in sorted(kept - wanted)]
        out = work / to
        recast.convert(source, out, to=to, sync=False)
        found = cls.from_pretrained(out, **{keyword: dtype}).state_dict()
        result.wrong += [
            f"{to}: {name} is not what the source gives"
            for name in expected
            if name not in found or not same(found[name], expected[name])
        ]
        shutil.rmtree(out)
    with itself("save in bf16"):
        model.save_pretrained(work / "saved")
    result.wrong += [f"saved in bf16: {alarm}" for alarm in alarms(work / "saved", "fp16")]
    return result


def of_transformers(cls: Any, work: Path) -> Result:
    if cls is None:
        raise LeftOut("has no model class of its own")
    return judge(cls, small_models.small(cls), "dtype", work)


def of_diffusers(cls: Any, work: Path) -> Result:
    return judge(cls, small_models.small_of_diffusers(cls), "torch_dtype", work)


def run(jobs: Iterator[tuple[str, Job]]) -> int:
    judged: collections.Counter[str] = collections.Counter()
    left_out: dict[str, str] = {}
    wrong: list[str] = []
    for label, job in jobs:
        work = Path(tempfile.mkdtemp(prefix="sweep"))
        start = time.monotonic()
        try:
            result = job(work)
        except LeftOut as reason:
            left_out[label] = str(reason)
            continue
        except Exception as error:
            wrong.append(f"{label}: {line(error)}")
            continue
        finally:
            shutil.rmtree(work)
        wide = sum(result.kept.values())
        judged.update(classes=1, keeping=bool(wide), wide=wide, more=len(result.more))
        wrong += [f"{label}: {problem}" for problem in result.wrong]
        print(
            f"{label}: {result.parameters / 1e6:.2f} M parameters, "
            f"kept {result.kept['fp16']} in fp16 and {result.kept['bf16']} in bf16, "
            f"{len(result.more)} more than the loader, {len(result.wrong)} wrong, "
            f"{time.monotonic() - start:.1f} s",
            flush=True,
        )
        for name in result.more[:4]:
            print(f"    kept, though the loader casts it: {name}")
    for label, why in sorted(left_out.items(), key=lambda item: (item[1], item[0])):
        print(f"left out: {label}: {why}")
    for problem in wrong:
        print(f"WRONG {problem}")
    kinds = collections.Counter(why.partition(":")[0] for why in left_out.values())
    for kind, count in kinds.most_common():
        print(f"{count} left out: {kind}")
    print(
        f"{judged['classes']} classes judged, {judged['keeping']} of them keep something "
        f"({judged['wide']} tensors, and {judged['more']} more that recast keeps); "
        f"{len(left_out)} left out, {len(wrong)} wrong; {time.process_time():.0f} s of CPU"
    )
    return 1 if wrong else 0


def all_jobs(only: list[str] | None, part: int, parts: int) -> Iterator[tuple[str, Job]]:
    for model_type in small_models.model_types()[part - 1 :: parts]:
        classes = small_models.classes_of(model_type)
        for name, cls in classes.items() or [("", None)]:
            if not only or model_type in only or name in only:
                yield f"{model_type} {name}".strip(), partial(of_transformers, cls)
    classes = small_models.diffusers_classes()
    for name in sorted(classes)[part - 1 :: parts]:
        if not only or name in only:
            yield f"diffusers {name}", partial(of_diffusers, classes[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="1/1", help="I/N: every Nth type, from the Ith")
    parser.add_argument("--only", nargs="*", help="model types, or class names")
    options = parser.parse_args()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    part, parts = map(int, options.part.split("/"))
    return run(all_jobs(options.only, part, parts))


if __name__ == "__main__":
    sys.exit(main())
