"""What the values of a dequantized weight must be: codes and scales, multiplied by torch.

Every product is made in fp64, where it is exact: a code has at most 4 significant bits, a scale 24.
Rounding it, first to fp32 and then to the target, is the same cast as that of an fp64 tensor.
Nothing here is shared with what makes a result.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recast.verification.dtypes import FP8, torch_floats
from recast.verification.header import Entry, Key
from recast.verification.values import CHUNK, Range, Reader

if TYPE_CHECKING:
    import torch

E8M0 = {"F8_E8M0", "U8"}
"""Dtypes of scales that are exponents; older writers lack the first."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of fp4 codes without their sign, which is the highest of four bits."""
PIECE = 1 << 20
"""Values that are multiplied at a time."""
WHOLE = CHUNK // 2
"""A scale tensor of at most so many bytes is read once and held."""
PAGE = 4096
"""Rows of at most so many bytes are read whole, because the disk does so anyway."""


@dataclass(frozen=True)
class Part:
    """A tensor of the source."""

    key: Key
    path: Path
    entry: Entry


@dataclass(frozen=True)
class Scale(Part):
    """A tensor of scales; one of them holds for a block of the weight."""

    blocks: tuple[int, ...]
    """The extents of a block, one for each dimension of the weight."""


@dataclass(frozen=True)
class Dequantized:
    """A weight of the result, and what it must be made of."""

    name: str
    """What it is called in the result, in the file of its codes."""
    shape: tuple[int, ...]
    """Its shape in the result."""
    codes: Part
    """fp8 codes of `shape`, or two fp4 codes to a byte, the first in the lower bits."""
    scale: Scale
    second: Scale | None = None
    """What each `scale` is itself scaled by, in fp32."""
    divides: bool = False
    """Whether `second` is a divisor."""
    transposed: bool = False
    """Whether the codes have the last two dimensions the other way round."""

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The tensors of the source that are not in the result."""
        return (self.scale,) if self.second is None else (self.scale, self.second)

    @property
    def logical(self) -> tuple[int, ...]:
        """The shape that the codes have."""
        if self.transposed:
            return *self.shape[:-2], self.shape[-1], self.shape[-2]
        return self.shape


class Products:
    """Reads the codes and scales of a weight, and multiplies them, on the device of a reader."""

    def __init__(self, weight: Dequantized, reader: Reader) -> None:
        import torch

        self.weight, self.reader = weight, reader
        self.scale = _Scales(weight.scale, weight.logical, reader)
        self.second: _Scales | None = None
        if weight.second is not None:
            self.second = _Scales(weight.second, weight.logical, reader)
        signed = [*E2M1, *(-value for value in E2M1)]
        self.e2m1 = torch.tensor(signed, dtype=torch.float64, device=reader.device)

    def __call__(self, wanted: list[Range]) -> "torch.Tensor":
        """The values at `wanted` in the result, flat, in fp64."""
        import torch

        count = sum(end - start for start, end in wanted)
        found = torch.empty(count, dtype=torch.float64, device=self.reader.device)
        at = 0
        for start, end in wanted:
            for matrix, rows, columns in rectangles(self.weight.shape, start, end):
                size = len(rows) * len(columns)
                out = found[at : at + size].view(len(rows), len(columns))
                at += size
                if self.weight.transposed:
                    self._fill(out.T, matrix, columns, rows)
                else:
                    self._fill(out, matrix, rows, columns)
        return found

    def _fill(self, out: "torch.Tensor", matrix: int, rows: range, columns: range) -> None:
        """Writes a part of a matrix of the codes' orientation to `out`, a piece at a time."""
        import torch

        for across in _pieces(columns, PIECE):
            left = across.start - columns.start
            height = max(1, PIECE // max(len(across), PAGE))
            for down in _pieces(rows, height):
                top = down.start - rows.start
                piece = out[top : top + len(down), left : left + len(across)]
                codes, scales = self._codes(matrix, down, across), self._scale(matrix, down, across)
                torch.mul(codes, scales, out=piece)

    def _scale(self, matrix: int, rows: range, columns: range) -> "torch.Tensor":
        """What each value of the piece is multiplied by."""
        import torch

        scale = self.scale.read(matrix, rows, columns)
        if self.second is None:
            return scale
        second = self.second.read(matrix, rows, columns).float()
        scale = scale.float()
        return (scale / second if self.weight.divides else scale * second).to(torch.float64)

    def _codes(self, matrix: int, rows: range, columns: range) -> "torch.Tensor":
        """The values of the codes of the piece."""
        import torch

        codes = self.weight.codes
        height, width = _matrix(self.weight.logical)
        packed = codes.entry.dtype not in FP8
        each = 2 if packed else 1
        # The bytes of a row that hold the columns, and of them those that are read.
        width //= each
        own = range(columns.start // each, -(-columns.stop // each))
        read = range(width) if width <= PAGE else own
        ranges = _within_rows(matrix * height * width, width, rows, read)
        raw = self.reader.read(codes.path, codes.entry, ranges).view(len(rows), -1)
        raw = raw[:, own.start - read.start : own.stop - read.start]
        if not packed:
            # A copy, because torch views no part of a row as another dtype.
            values = raw.contiguous().view(torch_floats()[codes.entry.dtype])
            return values.to(torch.float64)
        raw = raw.view(torch.uint8)
        both = torch.stack((raw & 15, raw >> 4), -1).view(len(rows), -1)
        skipped = columns.start - each * own.start
        return self.e2m1[both[:, skipped : skipped + len(columns)].int()]


class _Scales:
    """The scales of a weight of `shape`: all of them if they are few, or else read by the row."""

    def __init__(self, scale: Scale, shape: tuple[int, ...], reader: Reader) -> None:
        self.scale, self.shape, self.reader = scale, shape, reader
        pairs = zip(shape, scale.blocks, strict=True)
        self.counts = tuple(-(-extent // block) for extent, block in pairs)
        self.height, self.width = _matrix(self.counts)
        self.blocks = _matrix(scale.blocks)
        entry = scale.entry
        self.whole: torch.Tensor | None = None
        if entry.bytes <= WHOLE:
            self.whole = reader.read(scale.path, entry, [(0, entry.elements)]).clone()

    def read(self, matrix: int, rows: range, columns: range) -> "torch.Tensor":
        """The scale of each value of that part of a matrix, in fp64; one row or column of them
        where all rows or columns have the same."""
        import torch

        down, across = self.blocks
        first, last = rows.start // down, (rows.stop - 1) // down + 1
        left, right = columns.start // across, (columns.stop - 1) // across + 1
        found = self._grid(self._index(matrix), range(first, last), range(left, right))
        if len(found) > 1:
            found = found[torch.arange(rows.start, rows.stop, device=found.device) // down - first]
        if found.shape[1] > 1:
            numbers = torch.arange(columns.start, columns.stop, device=found.device)
            found = found[:, numbers // across - left]
        return found

    def _index(self, matrix: int) -> int:
        """Which matrix of scales a matrix of the weight has."""
        found, stride = 0, 1
        # The last two dimensions are those of the matrices.
        for at in reversed(range(len(self.shape) - 2)):
            extent, block, count = self.shape[at], self.scale.blocks[at], self.counts[at]
            matrix, index = divmod(matrix, extent)
            found, stride = found + index // block * stride, stride * count
        return found

    def _grid(self, matrix: int, rows: range, columns: range) -> "torch.Tensor":
        """A part of a matrix of scales."""
        import torch

        entry = self.scale.entry
        left, right = columns.start * entry.width, columns.stop * entry.width
        if self.whole is None:
            start = matrix * self.height * self.width
            ranges = _within_rows(start, self.width, rows, columns)
            raw = self.reader.read(self.scale.path, entry, ranges).view(len(rows), -1)
        else:
            raw = self.whole.view(-1, self.height, self.width * entry.width)[matrix]
            raw = raw[rows.start : rows.stop, left:right].contiguous()
        if entry.dtype in E8M0:
            # 2^(code - 127) by its bits, because a power may be rounded; a code of 255 is NaN.
            powers = ((raw.to(torch.int64) - 127 + 1023) << 52).view(torch.float64)
            return powers.masked_fill(raw == 255, torch.nan)
        return raw.view(torch_floats()[entry.dtype]).float().to(torch.float64)


def rectangles(shape: tuple[int, ...], start: int, end: int) -> Iterator[tuple[int, range, range]]:
    """The values `start` to `end` of a tensor as parts of its matrices, in order: which matrix,
    which rows and which columns of it."""
    height, width = _matrix(shape)
    while start < end:
        matrix, inside = divmod(start, height * width)
        row, column = divmod(inside, width)
        if column or end - start < width:
            columns = range(column, min(width, column + end - start))
            yield matrix, range(row, row + 1), columns
            start += len(columns)
        else:
            rows = range(row, min(height, row + (end - start) // width))
            yield matrix, rows, range(width)
            start += len(rows) * width


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The extents of the matrices that a tensor consists of; a vector is one column."""
    height, width = (*shape, 1, 1)[:2] if len(shape) < 2 else shape[-2:]
    return height, width


def _pieces(whole: range, most: int) -> Iterator[range]:
    for start in range(whole.start, whole.stop, most):
        yield range(start, min(start + most, whole.stop))


def _within_rows(start: int, width: int, rows: range, columns: range) -> list[Range]:
    """The columns of each row, in elements, of a matrix that begins at `start`."""
    if len(columns) == width:
        return [(start + rows.start * width, start + rows.stop * width)]
    starts = (start + row * width for row in rows)
    return [(row + columns.start, row + columns.stop) for row in starts]
