"""The prediction of GPU memory, against cases worked out by hand and what was measured."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recast.gpu.predict import predict
from recast.gpu.settings import Settings, read_settings
from support import environment

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Each row: the tensors' bytes, the keywords, and what the allocator then shows as requested,
# allocated and reserved, worked out by hand from the rules of the allocator.
NOTHING: dict[str, Any] = {}
PAGES: dict[str, Any] = {"expandable_segments": True}
QUARTERS: dict[str, Any] = {"roundup_power2_divisions": (4,) * 16}
CASES = {
    "no tensors": ([], NOTHING, (0, 0, 0)),
    # A tensor without elements has no storage.
    "zero bytes": ([0, 0], NOTHING, (0, 0, 0)),
    # Blocks are multiples of 512 B; a small segment is 2 MiB.
    "one byte": ([1], NOTHING, (1, 512, 2 * MIB)),
    "513 bytes": ([513], NOTHING, (513, 1024, 2 * MIB)),
    # 1000 x 1 KiB = 1000 KiB, and one segment of 2 MiB holds 2048 of them.
    "a thousand of 1 KiB": ([KIB] * 1000, NOTHING, (1000 * KIB, 1000 * KIB, 2 * MIB)),
    # 2048 fill the first segment to the last byte, 952 go into a second.
    "three thousand of 1 KiB": ([KIB] * 3000, NOTHING, (3000 * KIB, 3000 * KIB, 4 * MIB)),
    # Each takes 512 B, not 1: 5000 x 512 = 2,560,000 B, more than one segment of 2,097,152.
    "five thousand of 1 byte": ([1] * 5000, NOTHING, (5000, 2_560_000, 4 * MIB)),
    # 1 MiB is still small: two of them share 2 MiB.
    "two of 1 MiB": ([MIB] * 2, NOTHING, (2 * MIB, 2 * MIB, 2 * MIB)),
    # One byte more is large: 1 MiB + 512 B of a segment of 20 MiB.
    "1 MiB and a byte": ([MIB + 1], NOTHING, (MIB + 1, MIB + 512, 20 * MIB)),
    # 20 - 6 = 14, 14 - 6 = 8: no room for 9, so a second segment. 6 + 6 + 9 = 21.
    "6, 6 and 9 MiB": ([6 * MIB, 6 * MIB, 9 * MIB], NOTHING, (21 * MIB, 21 * MIB, 40 * MIB)),
    # Below 10 MiB a segment is 20 MiB, from there on the size rounded up to 2 MiB.
    "512 B less than 10 MiB": (
        [10 * MIB - 512],
        NOTHING,
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
    ),
    "10 MiB": ([10 * MIB], NOTHING, (10 * MIB, 10 * MIB, 10 * MIB)),
    # A segment of 12 MiB; the rest, 1 MiB, is not more than 1 MiB, so it is not split off.
    "11 MiB shows 12": ([11 * MIB], NOTHING, (11 * MIB, 12 * MIB, 12 * MIB)),
    # A segment of 12 MiB; the rest, 1.5 MiB, is split off.
    "10.5 MiB shows 10.5": ([21 * MIB // 2], NOTHING, (21 * MIB // 2, 21 * MIB // 2, 12 * MIB)),
    # ... and then holds 1.25 MiB, whose own rest of 0.25 MiB is too small: 10.5 + 1.5 = 12.
    "10.5 and 1.25 MiB": (
        [21 * MIB // 2, 5 * MIB // 4],
        NOTHING,
        (47 * MIB // 4, 12 * MIB, 12 * MIB),
    ),
    # 18.5 leaves 1.5 of 20; 5 leaves 15 of another 20. 1.25 goes where it fits best: into the
    # 1.5, all of it. 18.5 + 5 + 1.5 = 25.
    "the best fit, not the first": (
        [37 * MIB // 2, 5 * MIB, 5 * MIB // 4],
        NOTHING,
        (99 * MIB // 4, 25 * MIB, 40 * MIB),
    ),
    # A small tensor never takes the rest of a large segment: 10.5 (of 12) and 512 B (of 2).
    "the pools do not mix": (
        [21 * MIB // 2, 1],
        NOTHING,
        (21 * MIB // 2 + 1, 21 * MIB // 2 + 512, 14 * MIB),
    ),
    # Pages of 20 MiB, any rest of 512 B is split off: allocated is the sum of the blocks.
    "11 MiB in pages": ([11 * MIB], PAGES, (11 * MIB, 11 * MIB, 20 * MIB)),
    # Pages of 2 MiB for small blocks.
    "three thousand of 1 KiB in pages": (
        [KIB] * 3000,
        PAGES,
        (3000 * KIB, 3000 * KIB, 4 * MIB),
    ),
    # 30 of 2 pages leaves 10; 15 - 10 = 5 more is a page: 60.
    "30 and 15 MiB in pages": ([30 * MIB, 15 * MIB], PAGES, (45 * MIB, 45 * MIB, 60 * MIB)),
    # 39 of 2 pages leaves 1; 40.5 - 1 = 39.5 more is 2 pages: 80.
    "39 and 40.5 MiB in pages": (
        [39 * MIB, 81 * MIB // 2],
        PAGES,
        (159 * MIB // 2, 159 * MIB // 2, 80 * MIB),
    ),
    # 40 of 2 pages leaves nothing; the next byte takes a page.
    "40 and 2 MiB in pages": ([40 * MIB, 2 * MIB], PAGES, (42 * MIB, 42 * MIB, 60 * MIB)),
    # Between 1024 and 2048 MiB the quarters are 256 MiB wide: 1280.
    "1025 MiB in quarters": ([1025 * MIB], QUARTERS, (1025 * MIB, 1280 * MIB, 1280 * MIB)),
    "1280 MiB in quarters": ([1280 * MIB], QUARTERS, (1280 * MIB, 1280 * MIB, 1280 * MIB)),
    "a power of two in quarters": ([GIB], QUARTERS, (GIB, GIB, GIB)),
    # Between 1024 and 2048 KiB they are 256 KiB wide: 1280 KiB of a segment of 20 MiB.
    "1200 KiB in quarters": ([1200 * KIB], QUARTERS, (1200 * KIB, 1280 * KIB, 20 * MIB)),
    # Up to 4 x 512 B the quarters (1280) would be finer than a block: 3 blocks it is.
    "1100 B in quarters": ([1100], QUARTERS, (1100, 1536, 2 * MIB)),
    # Between 4096 and 8192 B they are 1024 B wide: 5120; 512 B blocks would make it 4608.
    "4500 B in quarters": ([4500], QUARTERS, (4500, 5120, 2 * MIB)),
    # 3 MiB is between 2 and 4 MiB, the second entry: halves of 1 MiB, so it stays 3. 5 MiB is in
    # the third: none, so it stays, too. 40 GiB is beyond 32 GiB, the last entry: 16 GiB wide, 48.
    "each interval has its own divisions": (
        [3 * MIB, 5 * MIB, 40 * GIB],
        {"roundup_power2_divisions": (8, 2) + (0,) * 13 + (2,)},
        (8 * MIB + 40 * GIB, 8 * MIB + 48 * GIB, 20 * MIB + 48 * GIB),
    ),
    # Six of 2 MiB fill a segment of 12 MiB, the seventh takes another.
    "seven of 2 MiB in segments of 12": (
        [2 * MIB] * 7,
        {"large_segment": 12 * MIB},
        (14 * MIB, 14 * MIB, 24 * MIB),
    ),
    # Pages of 12 MiB: 13 takes 2 of them.
    "13 MiB in pages of 12": (
        [13 * MIB],
        {"expandable_segments": True, "large_segment": 12 * MIB},
        (13 * MIB, 13 * MIB, 24 * MIB),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_predictions_match_cases_worked_out_by_hand(name: str) -> None:
    sizes, keywords, expected = CASES[name]
    assert tuple(predict(sizes, Settings(**keywords))) == expected


def llama_2_7b(width: int, *, rotary: bool) -> list[int]:
    """The bytes of every tensor of Llama-2-7B, at `width` bytes an element, in loading order.

    With `rotary`, also the buffers that transformers 4.32 kept in each layer and no checkpoint
    stores: cos and sin of 2048 positions x 128, and 64 inverse frequencies, always in fp32.
    """
    hidden, intermediate, vocabulary = 4096, 11008, 32000
    layer = [hidden * hidden] * 4 + [intermediate * hidden] * 3 + [hidden] * 2
    weights = [vocabulary * hidden, *(layer * 32), hidden, vocabulary * hidden]
    sizes = [elements * width for elements in weights]
    if rotary:
        sizes += [2048 * 128 * width, 2048 * 128 * width, 64 * 4] * 32
    return sizes


@pytest.mark.parametrize(
    ("width", "expected", "measured"),
    [(4, 25.102554321289062, 25.165069580078125), (2, 12.551277160644531, 12.582542419433594)],
)
def test_llama_2_7b_takes_what_was_measured_to_the_byte(
    width: int, expected: float, measured: float
) -> None:
    weights = predict(llama_2_7b(width, rotary=False))
    # Quotients by a power of two are exact, so equality is equality of bytes.
    assert (weights.requested / GIB, weights.allocated / GIB) == (expected, expected)
    assert predict(llama_2_7b(width, rotary=True)).allocated / GIB == measured


@pytest.mark.parametrize(("width", "difference"), [(2, 33_570_816), (4, 67_125_248)])
def test_the_rotary_buffers_are_the_whole_difference(width: int, difference: int) -> None:
    # 32 layers x (cos + sin) x 2048 x 128 x width, and 32 x 256 B, which take 512 B each.
    assert difference == 32 * (2 * 2048 * 128 * width + 512)
    without = predict(llama_2_7b(width, rotary=False)).allocated
    assert predict(llama_2_7b(width, rotary=True)).allocated - without == difference


CUDA, GENERAL = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Settings()),
        ({GENERAL: "expandable_segments:True"}, Settings(expandable_segments=True)),
        ({CUDA: " expandable_segments : True , "}, Settings(expandable_segments=True)),
        ({CUDA: "expandable_segments:False"}, Settings()),
        ({GENERAL: "large_segment_size_mb:12"}, Settings(large_segment=12 * MIB)),
        # The older name wins where both are set, even when it is set to nothing.
        ({CUDA: "", GENERAL: "expandable_segments:True"}, Settings()),
        (
            {CUDA: "expandable_segments:True", GENERAL: "expandable_segments:False"},
            Settings(expandable_segments=True),
        ),
        (
            {GENERAL: "roundup_power2_divisions:[2:8,>:1],expandable_segments:True"},
            Settings(expandable_segments=True, roundup_power2_divisions=(8, 8) + (1,) * 14),
        ),
    ],
)
def test_settings_are_read_from_the_environment(
    environ: dict[str, str], expected: Settings
) -> None:
    found, notes = read_settings(environ)
    assert found == expected
    # Numbers that are not those of PyTorch's defaults say so.
    assert bool(notes) == (expected != Settings())


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({CUDA: "expandable_segments:yes"}, "must be True or False"),
        ({CUDA: "roundup_power2_divisions:3"}, "3 is not a power of two"),
        ({CUDA: "roundup_power2_divisions:[2:x]"}, "'x' is not a number"),
        ({CUDA: "large_segment_size_mb:10"}, "must be more than 10"),
        ({GENERAL: "max_split_size_mb:64"}, "max_split_size_mb:64 is not modeled"),
        ({GENERAL: "backend:cudaMallocAsync"}, "backend:cudaMallocAsync is not modeled"),
        ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    ],
)
def test_settings_that_are_ignored_are_named(environ: dict[str, str], said: str) -> None:
    found, notes = read_settings(environ)
    assert found == Settings()
    assert [said in note for note in notes] == [True]


# Asks the library of torch that reads these variables; loading torch itself would take seconds.
ASK_TORCH = """
import ctypes, sys
table = ctypes.CDLL(sys.argv[1])[sys.argv[2]]
table.restype, table.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
print(*(table(1 << 20 + interval) for interval in range(16)))
"""
SYMBOL = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig24roundup_power2_divisionsEm"


@pytest.mark.parametrize(
    "value",
    [
        "4",
        "0",
        "3",
        "[64:8,256:4,1024:4,>:1]",
        "[64:8,256:4,>:2]",
        "[256:1,512:2,1024:4,>:8]",
        "[ 1:2, 2:4 ]",
        "[>:2]",
        "[256:2,]",
        "[131072:4]",
        "[256:0,>:2]",
        "[3:2]",
        "[256:6]",
    ],
)
def test_divisions_mean_what_they_mean_to_torch(value: str) -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).parent / "lib" / "libc10.so"
    if not library.is_file() or SYMBOL.encode() not in library.read_bytes():
        pytest.skip("this torch does not tell how it reads its settings")
    setting = f"roundup_power2_divisions:{value}"
    answer = subprocess.run(
        [sys.executable, "-c", ASK_TORCH, str(library), SYMBOL],
        env={**environment(), CUDA: setting},
        capture_output=True,
        text=True,
        check=False,
    )
    found, notes = read_settings({CUDA: setting})
    if answer.returncode:
        assert "ValueError" in answer.stderr
        assert [f"{CUDA}={setting} is not valid" in note for note in notes] == [True]
    else:
        assert tuple(map(int, answer.stdout.split())) == found.roundup_power2_divisions
