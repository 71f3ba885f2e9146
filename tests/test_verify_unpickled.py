"""How verification reads pickles by torch: which tensors it takes, which bytes, in what memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recast
import torch
from pickled import TIED, as_made, save, state
from recast.verification import pickles, values
from recast.verification.pickles import Pickles, chosen, flat, same
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import environment

ONE = {"w": torch.ones(1)}
TWO = {"w": torch.zeros(1), "n": 5, 7: torch.ones(1)}


@pytest.mark.parametrize(
    ("top", "key", "is_two"),
    [
        (TWO, None, True),
        ({"state_dict": TWO, "w": torch.ones(1)}, None, True),
        ({"module": TWO, "optimizer": {"state": {0: ONE}}, "lr": 0.1}, None, True),
        ({"model": {"encoder": ONE}, "ema": TWO}, None, True),
        ({"model": 5, "ema": TWO, "net": [ONE]}, None, True),
        ({"model": ONE, "discriminator": TWO}, "discriminator", True),
        ({"model": ONE, "ema": TWO}, "ema", True),
    ],
)
def test_the_state_dict_is_chosen_as_documented(top: Any, key: str | None, is_two: bool) -> None:
    assert set(chosen(top, key)) == {"w"}
    assert torch.equal(chosen(top, key)["w"], TWO["w"]) == is_two  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("top", "key"),
    [
        ({"model": ONE, "ema": TWO}, None),
        ({"model": ONE, "ema": TWO}, "net"),
        ({"model": ONE}, "w"),
        ({"encoder": ONE}, None),
        (torch.ones(3), None),
        ([ONE], None),
        (ONE, "w"),
        ({}, None),
    ],
)
def test_nothing_is_chosen_where_that_is_not_clear(top: Any, key: str | None) -> None:
    assert chosen(top, key) == {}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_are_tied_where_they_are_the_same_bytes_in_the_same_way(
    legacy: bool, tmp_path: Path
) -> None:
    base, empty, column = torch.randn(6, 4), torch.empty(0, 3), torch.randn(5, 1)
    held = {
        "z": base,
        "base": torch.nn.Parameter(base),
        "flat": base.view(-1),
        "turned": base.view(4, 6).t(),
        "equal": base.clone(),
        "first": base[0],
        "again": base[0],
        "second": base[1],
        "column": column,
        "strange": column.as_strided((5, 1), (1, 7)),
        # Without elements there is nothing to share.
        "none": empty,
        "nothing": empty,
        "part": base[2:2],
        "parts": base[2:2],
    }
    path = save(tmp_path / "m.pt", held, legacy=legacy)
    loaded = torch.load(path, weights_only=True, mmap=not legacy)
    found = {tuple(names) for names in same(chosen(loaded, None))}
    assert found == {("base", "z"), ("again", "first"), ("column", "strange")}


def test_of_tied_tensors_one_that_loaders_make_the_others_of_is_taken(tmp_path: Path) -> None:
    found = Pickles().find(save(tmp_path / "m.bin", state()), None)
    assert found.tied == TIED
    assert found.entries.keys() == state().keys()
    weight = torch.ones(3)
    names = ("lm_head.weight", "decoder.embed_tokens.weight", "wte.weight", "shared.weight")
    for kept in range(len(names)):
        held = dict.fromkeys(names[: kept + 1], weight)
        tied = Pickles().find(save(tmp_path / f"{kept}.bin", held), None).tied
        assert tied == dict.fromkeys(names[:kept], names[kept])


VIEWS = {
    "contiguous": torch.arange(120).reshape(2, 3, 4, 5),
    "transposed": torch.arange(120).reshape(2, 3, 4, 5).transpose(0, 3),
    "permuted": torch.arange(120).reshape(2, 3, 4, 5).permute(0, 2, 3, 1),
    "inner": torch.arange(240).reshape(4, 3, 4, 5)[1:3, :, 1:3, ::2],
    "expanded": torch.arange(6).reshape(2, 1, 3).expand(2, 20, 3),
    "every second": torch.arange(60)[::2],
    "scalar": torch.arange(9)[5],
    "ones": torch.arange(8).reshape(8, 1, 1).transpose(0, 2),
    "fp8": torch.arange(120, dtype=torch.uint8).view(torch.float8_e5m2).reshape(10, 12).t(),
    "complex": torch.complex(torch.randn(6, 5), torch.randn(6, 5)).t(),
    "bool": (torch.arange(30) % 7 < 3).reshape(5, 6).t(),
}


@pytest.mark.parametrize("name", VIEWS)
def test_every_part_of_every_view_is_read_as_torch_makes_it_contiguous(name: str) -> None:
    tensor = VIEWS[name]
    count, width = tensor.numel(), tensor.element_size()
    bits = tensor.view({1: torch.uint8, 8: torch.int64}[width])
    whole = bits.contiguous().numpy().tobytes()
    for start in range(count):
        for end in range(start + 1, count + 1):
            made = [piece.contiguous().numpy() for piece in flat(bits, start, end)]
            assert b"".join(map(np.ndarray.tobytes, made)) == whole[start * width : end * width]


@pytest.mark.parametrize("name", VIEWS)
def test_nothing_is_copied_but_what_is_read(name: str) -> None:
    tensor = VIEWS[name]
    for piece in flat(tensor, 0, tensor.numel()):
        assert piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def test_a_bool_keeps_its_bits(tmp_path: Path) -> None:
    odd = torch.arange(12, dtype=torch.uint8).view(torch.bool).view(3, 4)
    path = save(tmp_path / "m.pt", {"w": odd, "turned": odd.t()})
    for name, own in (("w", odd), ("turned", odd.t())):
        own = own.view(torch.uint8).contiguous().view(-1)
        assert torch.equal(read(entry(path, name), [(0, 12)]), own)


def entry(path: Path, name: str) -> pickles.Unpickled:
    return Pickles().find(path, None).entries[name]


def read(found: pickles.Unpickled, wanted: list[tuple[int, int]]) -> torch.Tensor:
    return values.Reader("cpu").read(found.path, found, wanted)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", sorted(state().keys() - {"none"}))
def test_a_tensor_has_the_bytes_that_torch_loads(name: str, legacy: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", state(), legacy=legacy)
    found = Pickles().find(path, None).entries[name]
    own = state()[name].detach().contiguous()
    assert (found.shape, found.bytes, found.width) == (own.shape, own.nbytes, own.itemsize)
    assert torch.equal(read(found, [(0, found.elements)]), own.view(-1).view(torch.uint8))
    if found.elements > 30:
        parts = [own.view(-1)[5:9], own.view(-1)[20:21]]
        expected = torch.cat([part.view(torch.uint8) for part in parts])
        assert torch.equal(read(found, [(5, 9), (20, 21)]), expected)


@pytest.mark.parametrize("dtype", sorted(pickles.DTYPES.items()))
def test_a_dtype_is_called_what_safetensors_calls_it(
    dtype: tuple[str, str], tmp_path: Path
) -> None:
    tensor = torch.zeros(16, dtype=torch.uint8).view(getattr(torch, dtype[1]))
    assert pickles.dtype_of(tensor) == dtype[0]
    assert entry(save(tmp_path / "m.pt", {"w": tensor}), "w").dtype == dtype[0]
    assert pickles.dtype_of(torch.zeros(1, dtype=torch.complex128)) == "complex128"


@pytest.mark.parametrize(("legacy", "loads"), [(False, 3), (True, 1)], ids=["zip", "legacy"])
def test_a_file_that_can_be_mapped_is_mapped_anew(
    legacy: bool, loads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = torch.load, []

    def counted(*arguments: Any, **options: Any) -> Any:
        loaded.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(pickles, "MAPPED", 100)
    monkeypatch.setattr(torch, "load", counted)
    held = {"w": torch.arange(96, dtype=torch.uint8), "v": torch.ones(3)}
    opened = Pickles()
    entries = opened.find(save(tmp_path / "m.pt", held, legacy=legacy), None).entries
    for _ in range(3):
        assert torch.equal(read(entries["w"], [(0, 60), (60, 96)]), held["w"])
        assert torch.equal(read(entries["v"], [(0, 3)]).view(torch.float32), held["v"])
    assert len(loaded) == loads


def test_one_file_is_held_at_a_time(tmp_path: Path) -> None:
    opened = Pickles()
    for number in range(3):
        path = save(tmp_path / f"{number}.bin", {"w": torch.full((4,), number)})
        (found,) = opened.find(path, None).entries.values()
        assert torch.equal(read(found, [(0, 4)]).view(torch.int64), torch.full((4,), number))
    assert opened._load.cache_info().currsize == 1


def test_a_name_that_is_no_text_is_no_obstacle(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": torch.ones(3)}).rename(tmp_path / os.fsdecode(b"\xff.pt"))
    assert torch.equal(read(entry(path, "w"), [(0, 3)]).view(torch.float32), torch.ones(3))


@pytest.mark.parametrize("other", [{"w": torch.ones(4)}, {"v": torch.ones(3)}, {"w": 5}])
def test_a_source_that_changes_meanwhile_is_an_error(other: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": torch.ones(3)})
    found = entry(path, "w")
    found.source._load.cache_clear()
    save(path, other)
    with pytest.raises(recast.InputError, match=r"m\.pt changed during verification: tensor 'w'"):
        read(found, [(0, 3)])


def test_what_torch_does_not_load_is_an_error_without_its_advice(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", {"w": torch.ones(3), "path": Path("x")})
    with pytest.raises(recast.InputError, match=r"m\.pt: torch cannot load it.*pathlib") as error:
        Pickles().find(path, None)
    assert "trust" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["2.5.1+cu121", "2.3.0"])
def test_a_torch_that_may_run_code_opens_no_pickle(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "m.pt", state())
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(recast.UsageError, match="may run code while it reads a pickle"):
        recast.verify(source, tmp_path / "out", device="cpu")
    with pytest.raises(recast.UsageError, match="may run code while it reads a pickle"):
        recast.convert(source, tmp_path / "other", to="bf16", verify="cpu", sync=False)
    assert not (tmp_path / "other").exists()
    # What is no pickle is none of its business.
    save_file(as_made(state(), "fp32"), tmp_path / "m.safetensors", {"format": "pt"})
    recast.convert(tmp_path / "m.safetensors", tmp_path / "b", to="bf16", verify="cpu", sync=False)


@pytest.mark.parametrize("shared", [True, False])
def test_each_quantized_weight_has_codes_and_scales_of_its_own(
    shared: bool, tmp_path: Path
) -> None:
    codes, scale = torch.randn(4, 4).to(torch.float8_e4m3fn), torch.tensor(2.0)
    held = {"a.weight": codes, "b.weight": codes, "c.weight": codes.clone()}
    held |= {"a.weight_scale": scale, "b.weight_scale": scale if shared else scale + 1}
    held |= {"c.weight_scale": scale, "a.input_scale": scale, "b.input_scale": scale}
    held |= {"norm.weight": torch.ones(3)}
    save(tmp_path / "model" / "model.bin", {**held, "tied.weight": held["norm.weight"]})
    out = tmp_path / "out"
    recast.convert(tmp_path / "model", out, to="fp32", sync=False)
    made = load_file(out / "model.safetensors")
    assert {*made} == {"a.weight", "b.weight", "c.weight", "norm.weight"}
    factor = 2.0 if shared else 3.0
    assert torch.equal(made["b.weight"], codes.float() * factor)
    assert torch.equal(made["a.weight"], codes.float() * 2.0)
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "tied.weight": "norm.weight"}
    assert recast.verify(tmp_path / "model", out, full=True).passed


@pytest.mark.parametrize("to", ["bf16", "as-stored"])
@pytest.mark.parametrize("report", [True, False])
def test_the_same_tensor_of_several_carried_weights_is_there_for_each(
    to: Any, report: bool, tmp_path: Path
) -> None:
    codes = torch.arange(16, dtype=torch.int32).reshape(4, 4)
    order, unscaled = torch.zeros(4, dtype=torch.int32), torch.ones(4).to(torch.float8_e4m3fn)
    held: dict[str, torch.Tensor] = {"x": unscaled, "y": unscaled, "norm.weight": torch.ones(3)}
    for layer in "ab":
        held |= {f"{layer}.qweight": codes + 1, f"{layer}.qzeros": codes, f"{layer}.g_idx": order}
        held |= {f"{layer}.scales": torch.ones(4)}
    save(tmp_path / "model" / "model.bin", {**held, "tied.weight": held["norm.weight"]})
    out = tmp_path / "out"
    recast.convert(tmp_path / "model", out, to=to, skip_quantized=True, verify="cpu", sync=False)
    assert {*load_file(out / "model.safetensors")} == {*held}
    if not report:
        (out / "recast.json").unlink()
    found = recast.verify(tmp_path / "model", out, device="cpu", full=True)
    assert found.passed, found.failures()


def test_memory_does_not_grow_with_a_pickle(tmp_path: Path) -> None:
    count = 63 << 20
    held = {"w": torch.zeros(3, count // 3), "turned": torch.zeros(1 << 12, 1 << 12).t()}
    source = tmp_path / "model.pt"
    torch.save(held, source)
    recast.convert(source, tmp_path / "out", to="bf16", sync=False)
    code = (
        "import threading, torch, recast\n"
        "import safetensors.torch\n"
        "def used():\n"
        "    '''Anonymous memory, and the pages of the source.'''\n"
        "    own = int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
        "    inside, mapped = False, 0\n"
        "    for line in open('/proc/self/smaps'):\n"
        "        if '-' in line.split(' ')[0]: inside = line.rstrip().endswith('model.pt')\n"
        "        elif inside and line.startswith('Rss:'): mapped += int(line.split()[1])\n"
        "    return own, mapped\n"
        "(before, _), peaks, done = used(), [], threading.Event()\n"
        "def watch():\n"
        "    while not done.wait(0.05): peaks.append(used())\n"
        "thread = threading.Thread(target=watch); thread.start()\n"
        f"paths = {str(source)!r}, {str(tmp_path / 'out')!r}\n"
        "found = recast.verify(*paths, device='cpu', full=True)\n"
        "done.set(); thread.join()\n"
        f"assert found.passed and found.values_checked == {count + (1 << 24)}, found\n"
        "print((max(own for own, _ in peaks) - before) // 1024)\n"
        "print(max(mapped for _, mapped in peaks) // 1024)\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    own, mapped = map(int, result.stdout.split())
    # In MiB; the file has 316. Usually it is 150, and 160 of the file.
    assert own < 256
    assert 0 < mapped < 224
