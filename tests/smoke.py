"""Tries an installed recast on any system, with nothing but what it requires: no torch, no pytest.

python tests/smoke.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import recast
from safetensors.numpy import load_file, save_file


def main() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 33)).astype(np.float32)
    expected = weights.astype(ml_dtypes.bfloat16)
    assert recast.cast(weights, "bf16").tobytes() == expected.tobytes()
    with tempfile.TemporaryDirectory() as folder:
        source, dest = Path(folder, "model"), Path(folder, "out")
        source.mkdir()
        save_file({"w": weights}, source / "model.safetensors")
        (source / "config.json").write_text('{"dtype": "float32"}')
        for command in (
            ["inspect", source],
            ["convert", source, dest, "--to", "bf16"],
            ["convert", source, dest, "--to", "bf16"],
            ["verify", dest],
        ):
            subprocess.run([sys.executable, "-m", "recast", *map(str, command)], check=True)
        assert load_file(dest / "model.safetensors")["w"].tobytes() == expected.tobytes()
        assert '"bfloat16"' in (dest / "config.json").read_text()
    print("fine")


if __name__ == "__main__":
    main()
