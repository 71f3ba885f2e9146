"""What a verification asks of a loader."""

from typing import TYPE_CHECKING, Protocol

from recast.gpu.predict import Memory
from recast.verification.header import Key
from recast.verification.measure import Allocation

if TYPE_CHECKING:
    import torch


class LoadError(Exception):
    """The result cannot be loaded: a problem of the result, not of the machine."""


class Loader(Protocol):
    """A way to load a result onto a device. It is made of the root of the result, the headers of
    its shards and the device, and raises `UsageError` or `InputError` where it cannot work.

    The methods are called in this order, each once; the first two raise `LoadError`.
    """

    def predict(self) -> tuple[list[Allocation], Memory]:
        """What loading will leave on a GPU: each tensor once, in order, and the total."""

    def load(self) -> object:
        """Loads the model onto the device, one tensor after the other, and keeps it."""

    def allocations(self) -> list[Allocation]:
        """What was loaded, each tensor once, with its address."""

    def find(self, key: Key) -> "torch.Tensor | None":
        """A tensor of a shard as it was loaded; `None` where the loaded model does not show all
        bits of it, so that the file is compared instead. Called for every tensor."""

    def notes(self) -> list[str]:
        """What should be known about the way it was loaded."""
