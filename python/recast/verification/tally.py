"""What a cast did to the values of a tensor, counted by torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PIECE = 1 << 17
"""Elements that are counted at a time."""


@dataclass
class Tally:
    """The counts that a report has of a tensor that was cast; those of a dequantized one are of its
    fp32 products (`of_products`), of which the exact ones are given."""

    of_products: bool = False
    to_inf: int = 0
    to_zero: int = 0
    nan: int = 0
    inf: int = 0
    max_abs: float = 0.0
    """The largest finite magnitude in the source."""
    exact: bool | None = True
    """Whether no bit was lost; `None` of products, and where there is NaN, which has many bits."""

    def add(self, values: "torch.Tensor", dtype: "torch.dtype") -> None:
        """Counts the floats `values` of the source, which become `dtype`."""
        # In pieces that stay in the cache, and need next to no memory.
        for start in range(0, values.numel(), PIECE):
            self._add(values[start : start + PIECE], dtype)

    def _add(self, values: "torch.Tensor", dtype: "torch.dtype") -> None:
        import torch

        made = values.to(dtype)
        wide = values if values.element_size() > 2 else values.float()
        sizes = wide.abs()
        # Nearly always there is nothing but finite values, and no zero that was none.
        is_finite = sizes.isfinite()
        if not bool(is_finite.all()):
            self.nan += int(sizes.isnan().sum())
            self.inf += int(sizes.isinf().sum())
            sizes = sizes.where(is_finite, 0)
        if not bool(made.isfinite().all()):
            self.to_inf += int((made.isinf() & is_finite).sum())
        if (zeros := int((made == 0).sum())) != 0:
            self.to_zero += zeros - int((wide == 0).sum())
        if self.of_products or self.nan:
            self.exact = None
        elif self.exact:
            self.exact = torch.equal(made.to(wide.dtype), wide)
        largest = float(sizes.max())
        if self.of_products:
            limit = torch.finfo(torch.float32).max
            largest = min(float(torch.tensor(largest).float()), limit)
        self.max_abs = max(self.max_abs, largest)
