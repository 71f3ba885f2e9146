"""Showing that a converted model is what it should be: its structure, its values, its memory.

Nothing here shares code with what it checks. Headers are read by a few lines of Python and by the
safetensors library, values are cast by torch on the device that will use the model, and memory is
what PyTorch's allocator counts. Only this part of recast requires torch, and it imports torch only
when it runs.
"""

from recast.verification.result import Verification
from recast.verification.run import verify

__all__ = ["Verification", "verify"]
