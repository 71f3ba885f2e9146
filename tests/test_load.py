"""`recast.load`, `tensors` and `load_into`: the values that torch casts, of every source, and no
more memory than they take. The judges are torch, safetensors and the operating system."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recast
import torch
from safetensors.torch import load_file, save_file
from support import environment

DTYPES: list[tuple[Any, torch.dtype | None]] = [
    (None, None),
    ("fp32", torch.float32),
    ("fp16", torch.float16),
    ("bf16", torch.bfloat16),
]


def held() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {
        "a.weight": torch.randn(300, 70),
        "b.weight": torch.randn(5, 4, 3, 6).half(),
        "c.weight": torch.randn(1 << 19),
        "d": torch.arange(40).reshape(4, 10),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "flags": torch.tensor([True, False]),
        "wide": torch.randn(9, dtype=torch.float64),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards, and a copy that loaders do not take."""
    (tmp_path / "model").mkdir()
    tensors = held()
    names = sorted(tensors)
    for number in (1, 2):
        part = {name: tensors[name] for name in names[number - 1 :: 2]}
        save_file(part, tmp_path / "model" / f"model-0000{number}-of-00002.safetensors")
    weight_map = {
        name: f"model-0000{1 + names.index(name) % 2}-of-00002.safetensors" for name in names
    }
    text = f'{{"metadata": {{}}, "weight_map": {weight_map}}}'.replace("'", '"')
    (tmp_path / "model" / "model.safetensors.index.json").write_text(text)
    (tmp_path / "model" / "copy").mkdir()
    save_file(tensors, tmp_path / "model" / "copy" / "model.safetensors")
    return tmp_path / "model"


def cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("to", "dtype"), DTYPES)
def test_what_is_loaded_is_what_torch_casts(model: Path, to: Any, dtype: Any) -> None:
    expected = {name: cast(tensor, dtype) for name, tensor in held().items()}
    options: dict[str, Any] = {"auto_keep": False}
    assert_same(recast.load(model, to, **options), expected)
    assert_same(dict(recast.tensors(model, to, **options)), expected)
    assert_same(recast.load(model, to, threads=1, **options), expected)


def test_what_is_loaded_is_what_a_conversion_writes(model: Path, tmp_path: Path) -> None:
    recast.convert(model, tmp_path / "out", to="bf16", keep=["a.*"], sync=False)
    written: dict[str, torch.Tensor] = {}
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        written |= load_file(file)
    assert_same(recast.load(model, "bf16", keep=["a.*"]), written)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_is_loaded_as_torch_loads_it(old: bool, tmp_path: Path) -> None:
    tensors = held()
    tensors["turned"] = torch.randn(70, 90).t()
    tensors["tied.weight"] = tensors["a.weight"]
    path = tmp_path / "model.bin"
    torch.save({"model": tensors, "step": 3}, path, _use_new_zipfile_serialization=not old)
    found = recast.load(path, "bf16", auto_keep=False)
    assert_same(found, {name: cast(tensor, torch.bfloat16) for name, tensor in tensors.items()})
    stored = dict(recast.tensors(path))
    assert_same(stored, tensors)
    assert stored["turned"].is_contiguous()
    assert stored["tied.weight"].data_ptr() == stored["a.weight"].data_ptr()


def test_codes_and_scales_are_loaded_as_the_values_they_stand_for(tmp_path: Path) -> None:
    codes = torch.randn(64, 32).to(torch.float8_e4m3fn)
    save_file({"w.weight": codes, "w.weight_scale": torch.tensor(0.5)}, tmp_path / "m.safetensors")
    found = recast.load(tmp_path / "m.safetensors", "bf16")
    assert_same(found, {"w.weight": (codes.float() * 0.5).bfloat16()})
    # As stored, they are what they are.
    assert recast.load(tmp_path / "m.safetensors").keys() == {"w.weight", "w.weight_scale"}


Cut = tuple[slice, ...]
CUTS: dict[str, Callable[[tuple[int, ...]], Cut | None]] = {
    "rows": lambda shape: (slice(1, 3),) if shape and shape[0] > 3 else None,
    "columns": lambda shape: (slice(None), slice(1, 3)) if len(shape) > 1 else None,
    "both": lambda shape: (slice(-2, None), slice(0, 2)) if len(shape) > 1 else None,
    "inner": lambda shape: (*(slice(None),) * 2, slice(1, 2)) if len(shape) == 4 else None,
    "nothing": lambda shape: (slice(2, 2),) if shape else None,
}


@pytest.mark.parametrize("kind", ["safetensors", "pickle", "quantized"])
@pytest.mark.parametrize(("to", "dtype"), DTYPES[::3])
@pytest.mark.parametrize("cut", CUTS)
def test_a_part_of_a_tensor_is_that_part_of_the_whole(
    kind: str, to: Any, dtype: Any, cut: str, model: Path, tmp_path: Path
) -> None:
    source = model
    if kind == "pickle":
        source = tmp_path / "it.pt"
        torch.save({**held(), "turned": torch.randn(7, 9).t()}, source)
    elif kind == "quantized":
        source = tmp_path / "q.safetensors"
        codes = torch.randn(64, 32).to(torch.float8_e4m3fn)
        save_file({"w.weight": codes, "w.weight_scale": torch.rand(64, 1)}, source)
    whole = recast.load(source, to, auto_keep=False)
    found = recast.load(source, to, auto_keep=False, sharding=lambda name, shape: CUTS[cut](shape))
    expected = {
        name: tensor if (part := CUTS[cut](tuple(tensor.shape))) is None else tensor[part]
        for name, tensor in whole.items()
    }
    assert_same(found, expected)


def test_a_module_is_loaded_in_place(model: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(70, 300)
            self.head = torch.nn.Linear(70, 300, bias=False)
            self.head.weight = self.a.weight
            self.register_buffer("d", torch.zeros(4, 10, dtype=torch.int64))

    with torch.device("meta"):
        net = Net()
    found = recast.load_into(net, model, "bf16")
    assert found.missing == ["a.bias"]
    assert sorted(found.unexpected) == sorted(held().keys() - {"a.weight", "d"})
    assert torch.equal(net.a.weight, held()["a.weight"].bfloat16())
    assert net.head.weight is net.a.weight
    assert torch.equal(net.get_buffer("d"), held()["d"])
    wrong = torch.nn.Module()
    wrong.a = torch.nn.Linear(3, 4)
    with pytest.raises(RuntimeError, match="size mismatch"):
        recast.load_into(wrong, model)


def test_values_that_do_not_fit_are_an_error_unless_something_else_is_asked_for(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"small": torch.ones(3), "big": torch.tensor([1e9, 2.0])}, path)
    with pytest.raises(recast.CastOverflowError, match="big") as caught:
        recast.load(path, "fp16")
    assert "small" not in str(caught.value)
    assert recast.load(path, "fp16", on_overflow="inf")["big"][0] == torch.inf
    assert recast.load(path, "fp16", on_overflow="saturate")["big"][0] == 65504
    with pytest.raises(recast.CastOverflowError):
        list(recast.tensors(path, "fp16"))


def test_two_models_of_one_folder_are_not_mixed_up(tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text('{"_class_name": "X"}')
        save_file({"w": torch.ones(2)}, tmp_path / part / "diffusion_pytorch_model.safetensors")
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "P", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}'
    )
    with pytest.raises(recast.InputError, match="several tensors have the same name: w"):
        recast.load(tmp_path)
    assert recast.load(tmp_path / "unet").keys() == {"w"}


@pytest.mark.parametrize(
    ("part", "says"), [((slice(None),) * 3, "dimensions"), ((slice(0, 4, 2),), "step")]
)
def test_slices_that_make_no_sense_are_refused(part: Cut, says: str, tmp_path: Path) -> None:
    save_file({"w": torch.ones(4, 4)}, tmp_path / "m.safetensors")
    with pytest.raises(recast.UsageError, match=says):
        recast.load(tmp_path / "m.safetensors", sharding=lambda name, shape: part)


def test_without_torch_arrays_are_loaded(model: Path) -> None:
    code = (
        "import sys, importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find(name)\n"
        "import recast\n"
        f"found = recast.load({str(model)!r}, 'bf16')\n"
        "assert 'torch' not in sys.modules\n"
        "print(type(found['a.weight']).__name__, found['a.weight'].dtype, found['d'].dtype)\n"
        f"print(found['a.weight'].astype('f4').sum(), recast.load({str(model)!r})['wide'].dtype)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == "ndarray bfloat16 int64"
    total, dtype = second.split()
    expected = held()["a.weight"].bfloat16().float().numpy().sum(dtype=np.float32)
    assert float(total) == pytest.approx(float(expected), rel=1e-4)
    assert dtype == "float64"


def test_loading_takes_no_more_memory_than_the_result(tmp_path: Path) -> None:
    count, tensors = 16 << 20, 8
    save_file({f"w{n}": torch.zeros(count) for n in range(tensors)}, tmp_path / "m.safetensors")
    code = (
        "import resource, torch, recast\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10\n"
        f"recast.load({str(tmp_path / 'm.safetensors')!r}, 'bf16', sharding=lambda n, s: "
        "(slice(0, 9),))\n"
        "before = peak()\n"
        f"found = recast.load({str(tmp_path / 'm.safetensors')!r}, 'bf16')\n"
        "print(peak() - before - sum(tensor.nbytes for tensor in found.values()))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 64 << 20


def test_two_buffers_in_turn_carry_everything_to_a_gpu(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: what is asked of CUDA is noted, and done by the CPU when it is waited for."""
    waiting: list[Callable[[], object]] = []

    class Event:
        def record(self, stream: object) -> None:
            self.until = len(waiting)

        def synchronize(self) -> None:
            for number in range(self.until):
                waiting[number]()
                waiting[number] = lambda: None

    empty, copy = torch.empty, torch.Tensor.copy_

    def late(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> None:
        assert non_blocking
        waiting.append(lambda: copy(target, source))

    def memory(*shape: Any, pin_memory: bool = False, device: Any = None, **options: Any) -> Any:
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", memory)
    monkeypatch.setattr(torch.Tensor, "copy_", late)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr("recast.loading.loader.BATCH", 1 << 16)
    found = recast.load(model, "bf16", device="cuda", auto_keep=False)
    for step in waiting:
        step()
    assert len(waiting) > 20
    assert_same(found, {name: cast(tensor, torch.bfloat16) for name, tensor in held().items()})


@pytest.mark.parametrize("to", [None, "bf16"])
def test_tensors_of_two_versions_of_a_file_are_not_mixed(
    to: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recast.loading.wanted.BATCH", 1 << 20)
    path, other = tmp_path / "m.safetensors", tmp_path / "other"
    for value, file in ((1.0, path), (2.0, other)):
        save_file({f"w{n}": torch.full((1 << 16,), value) for n in range(40)}, file)
    coming = recast.tensors(path, to)
    first = next(coming)
    other.rename(path)
    with pytest.raises(recast.InputError, match="changed while it was being loaded"):
        dict([first, *coming])


def test_buffers_that_are_tied_stay_tied(tmp_path: Path) -> None:
    save_file({"one": torch.ones(3)}, tmp_path / "m.safetensors")
    module = torch.nn.Module()
    shared = torch.zeros(3)
    module.register_buffer("one", shared)
    module.register_buffer("two", shared)
    assert recast.load_into(module, tmp_path / "m.safetensors") == ([], [])
    assert module.get_buffer("two") is module.get_buffer("one")
    assert torch.equal(module.get_buffer("two"), torch.ones(3))
