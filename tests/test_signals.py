"""A signal stops the command soon, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import environment, raw_header


def default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("dest_exists", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_soon_and_leaves_nothing(
    number: signal.Signals, code: int, dest_exists: bool, tmp_path: Path
) -> None:
    elements = 100_000_000
    entry = {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}
    source, dest = tmp_path / "model.safetensors", tmp_path / "out"
    header = raw_header({"w": entry})
    source.write_bytes(header)
    os.truncate(source, len(header) + 4 * elements)
    for _ in range(5):
        if dest_exists:
            dest.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "recast", "convert", str(source), str(dest)]
        process = subprocess.Popen(
            [*command, "--to", "bf16", "--threads", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=default_signals,
        )
        while not (dest / ".recast").exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(number)
        sent = time.monotonic()
        printed, complaint = process.communicate(timeout=30)
        waited = time.monotonic() - sent
        if process.returncode != 0:
            break
        # It was done before the signal came: clear up, and try again.
        for path in dest.iterdir():
            path.unlink()
        dest.rmdir()
    assert process.returncode == code, complaint
    assert waited < 2
    assert printed == ""
    assert complaint.splitlines() == ["interrupted; nothing was published"]
    assert dest.exists() == dest_exists
    assert not dest_exists or list(dest.iterdir()) == []
    sys.stdout.write(f"{number.name}: gone {waited:.3f} s after it was sent\n")


def test_a_signal_the_parent_ignores_stays_ignored(model: Path, tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    code = (
        "import os, signal, recast.cli\n"
        "recast.cli._run = lambda: os.kill(os.getpid(), signal.SIGINT) or 7\n"
        "recast.cli.main()\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, preexec_fn=ignore, check=False, env=environment())
    assert result.returncode == 7
