"""Pickles nobody should trust: each is refused by name and reason, and nothing of them is run.

The judge is torch.load(weights_only=True): where it opens what recast refuses, the case says why.
"""

import pickletools
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import recast
from hostile import refused
from hostile_pickles import CANARY, FILES, GROUPS, HEAVY, LARGE, ODDITIES, Hostile, oddities
from hostile_pickles.case import beside
from hostile_pickles.opcodes import FIRST, FORBIDDEN
from pickle_bytes import named, pickled
from pickle_judge import described, difference, model_of, opened, other_values
from support import environment, recast_here, recast_process
from valid_pickles import FILES as VALID

MIB = 1 << 20
RUN = [name for name, case in FILES.items() if case.executes]
# With names of that length, torch searches its own message for minutes; and for an entry that is
# marked as a folder, it takes memory as it finds it.
UNJUDGED = {"a megabyte of a global's name", "a megabyte of a global's module", "a million extents"}
UNJUDGED |= {"a data.pkl that is marked as a folder"}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a hostile file will lie, in a working directory in which it would put the canary."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    return tmp_path / "source" / "model.bin"


def check_message(message: str, case: Hostile) -> None:
    assert message.isprintable(), message
    assert "panicked" not in message
    for pattern in case.says:
        assert re.search(pattern, message), (pattern, message)


@pytest.mark.parametrize("name", VALID)
def test_the_valid_files_are_read_as_torch_reads_them(name: str, file: Path) -> None:
    file.write_bytes(VALID[name])
    model = model_of(opened(file))
    assert model
    assert difference(model, described(file)) is None
    recast.convert(file, file.parent / "out", to="as-stored", sync=False)
    assert other_values(model, file.parent / "out" / "model.safetensors") == []


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_by_name_and_reason(name: str, file: Path) -> None:
    case = FILES[name]
    file.write_bytes(case.content())
    # What is something else is so for every other command, too.
    refused(file, recast.InputError if case.foreign else recast.PickleError, "model.bin")
    result = recast_here("inspect", file)
    assert result.returncode == 65, result.stdout
    error, _, hint = result.stderr.partition("\nhint: ")
    assert error.startswith("error: ")
    assert str(file) in error
    assert "Traceback" not in result.stderr
    assert hint
    check_message(error, case)
    assert not (file.parent.parent / CANARY).exists()


@pytest.mark.parametrize("name", RUN)
def test_a_payload_would_run_where_a_program_obeys(name: str, file: Path) -> None:
    # The proof that the canary sings: Python's own unpickler, which does as it is told.
    file.write_bytes(FILES[name].content())
    subprocess.run([sys.executable, "-c", OBEY, file], capture_output=True, timeout=30, check=False)
    assert (file.parent.parent / CANARY).exists()


OBEY = """
import io, pickle, sys, zipfile

class Obedient(pickle.Unpickler):
    def find_class(self, module, name):
        if module.startswith("torch"):
            return lambda *arguments: None
        return super().find_class(module, name)

    def persistent_load(self, identifier):
        return None

data = open(sys.argv[1], "rb").read()
if data.startswith(b"PK"):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [archive.read(entry) for entry in archive.infolist() if "pkl" in entry.filename]
else:
    pickles = [data]
for text in pickles:
    stream = io.BytesIO(text)
    try:
        while stream.tell() < len(text):
            Obedient(stream).load()
    except Exception:
        pass
"""


def torch_opens(path: Path) -> bool:
    try:
        opened(path)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__.rpartition(".")[2])
def test_what_torch_opens_all_the_same_is_written_down(group: ModuleType, file: Path) -> None:
    other = []
    for case in group.FILES:
        file.unlink(missing_ok=True)
        file.write_bytes(case.content())
        if case.name not in UNJUDGED and torch_opens(file) != bool(case.torch):
            other.append(case.name)
    assert other == []
    assert not (file.parent.parent / CANARY).exists()


def test_the_byte_that_a_message_names_is_that_of_the_opcode(file: Path) -> None:
    names = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    for name, code in FORBIDDEN.items():
        file.write_bytes(beside(code))
        with pytest.raises(recast.PickleError) as caught:
            recast.inspect(file)
        found = re.search(r"opcode (\w+) at byte (\d+) of archive/data\.pkl", caught.value.message)
        if found is None:
            assert name in FIRST
            continue
        with zipfile.ZipFile(file) as archive:
            assert names[archive.read("archive/data.pkl")[int(found[2])]] == found[1]


def test_torch_too_refuses_everything_that_would_run() -> None:
    assert len(RUN) > 25
    assert [name for name in RUN if FILES[name].torch] == []


NOT_TORCH = {
    "another version": "recast reads no version",
    "a version that is none": "recast reads no version",
    "metadata that says no": "torch sets what it need not",
}


def read_as_torch_does(file: Path, name: str) -> None:
    """Either it is refused, or what is read is what torch reads."""
    refusal = None
    try:
        found = described(file)
    except recast.PickleError as error:
        refusal = error
    if refusal is not None:
        assert refusal.hint
        assert refusal.message.isprintable()
        return
    if name in NOT_TORCH:
        assert not torch_opens(file)
        return
    model = model_of(opened(file))
    assert difference(model, found) is None
    recast.convert(file, file.parent / "out", to="as-stored", sync=False)
    assert other_values(model, file.parent / "out" / "model.safetensors") == []


@pytest.mark.parametrize("name", ODDITIES)
def test_an_odd_file_is_refused_or_read_as_torch_reads_it(name: str, file: Path) -> None:
    file.write_bytes(ODDITIES[name])
    read_as_torch_does(file, name)
    assert recast_here("inspect", file).returncode in (0, 65)


@pytest.mark.parametrize("name", ["zip", "legacy", "zip of strided tensors"])
def test_a_file_cut_at_every_tenth_byte_is_refused(name: str, file: Path) -> None:
    whole = VALID[name]
    for length in range(0, len(whole), 10):
        file.write_bytes(whole[:length])
        with pytest.raises(recast.InputError) as caught:
            recast.inspect(file)
        # Only what is shorter than how such a file starts may be something else.
        assert isinstance(caught.value, recast.PickleError) or length < 16, length
        assert str(file) in caught.value.message, length
        assert caught.value.message.isprintable()
    file.write_bytes(whole)
    recast.inspect(file)


PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(done.stderr, end="")
"""


def measured(*arguments: object) -> tuple[int, int, str]:
    """The command's exit code, the bytes that it took at most, and what it said."""
    # By way of a small process: a child's peak starts with the size of the one it forks from.
    command = [sys.executable, "-c", PEAK, sys.executable, "-m", "recast", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=environment()
    )
    numbers, _, error = done.stdout.partition("\n")
    code, peak = numbers.split()
    return int(code), int(peak) << 10, error


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_bomb_takes_neither_memory_nor_time(name: str, file: Path) -> None:
    case = LARGE[name]
    file.write_bytes(case.content())
    start = time.perf_counter()
    code, peak, error = measured("inspect", file)
    assert time.perf_counter() - start < 20
    assert code == 65, error
    assert peak < 256 * MIB, peak / MIB
    assert str(file) in error
    for pattern in case.says:
        assert re.search(pattern, error), error


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_what_asks_for_much_takes_neither_memory_nor_time(name: str, file: Path) -> None:
    file.write_bytes(HEAVY[name]())
    start = time.perf_counter()
    code, peak, error = measured("inspect", file)
    assert code in (0, 65), error
    assert peak < 256 * MIB, peak / MIB
    assert time.perf_counter() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", oddities.LARGE)
def test_a_deep_value_takes_neither_the_stack_nor_memory(name: str, file: Path) -> None:
    file.write_bytes(beside(oddities.LARGE[name]))
    code, peak, error = measured("inspect", file)
    assert code in (0, 65), error
    assert peak < 256 * MIB, peak / MIB


def test_an_honest_command_says_so_too(file: Path) -> None:
    file.write_bytes(FILES["the global posix.system"].content())
    result = recast_process("inspect", file, cwd=file.parent)
    assert result.returncode == 65
    assert "posix.system" in result.stderr
    assert not list(file.parent.glob(CANARY))
    assert "Traceback" not in result.stderr


def test_nothing_that_a_pickle_names_is_imported(file: Path) -> None:
    # A module that would leave the canary as soon as it is imported.
    (file.parent.parent / "evil.py").write_text(f"open({CANARY!r}, 'w').close()\n")
    for data in (beside(named("evil.thing")), pickled(named("evil.thing"))):
        file.write_bytes(data)
        code = (
            "import recast, sys\ntry: recast.inspect(sys.argv[1])\nexcept recast.InputError: pass\n"
        )
        code += "assert 'evil' not in sys.modules\nassert 'torch' not in sys.modules"
        env = environment(PYTHONPATH=f"{file.parent.parent}:{':'.join(sys.path)}")
        subprocess.run([sys.executable, "-c", code, file], check=True, env=env)
        assert not (file.parent.parent / CANARY).exists()


def test_a_pointer_of_git_lfs_is_called_so(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(file, recast.HeaderError, "model.bin")
    assert "git lfs pull" in recast_here("inspect", file).stderr
