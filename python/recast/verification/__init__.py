"""Showing that a converted model is what was promised: its structure, its values, its memory.

Whatever judges here shares nothing with what it judges. Headers are read by a few lines of Python
and by the safetensors library, values are cast by torch on the device that will use the model, and
memory is what PyTorch's allocator counts. This is the one part of recast that needs torch, and it
imports it only when called.
"""

from recast.verification.result import Verification
from recast.verification.run import verify

__all__ = ["Verification", "verify"]
