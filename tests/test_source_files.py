"""Only regular files of the model are opened: no special file, and nothing a link leads out to."""

import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import recast
from hostile import CANARY, INDEX, SHARD, refused, state, unopened
from support import raw_bytes, recast_here, tree


@pytest.fixture
def canary(model: Path) -> Path:
    """A valid shard outside the model, with the tensor that the index asks for."""
    path = model.parent / "canary.safetensors"
    path.write_bytes(CANARY)
    return path


def make_socket(path: Path) -> None:
    # A socket's own path is limited to about 100 bytes.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def make_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to a pipe": make_link_to_a_pipe,
}

PLACES = [SHARD, "x.safetensors", INDEX, "config.json", "notes.txt", "old.bin", "sub/config.json"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_file_is_refused_and_never_opened(kind: str, place: str, model: Path) -> None:
    path = model / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    SPECIAL[kind](path)
    assert not stat.S_ISREG(path.stat().st_mode)
    before = state(model.parent)
    # A socket cannot be opened, and everything opens the devices.
    with unopened(*[] if kind in ("device", "terminal") else [path]):
        for arguments in (
            ["inspect", model],
            ["convert", model, model.parent / "out", "--to", "bf16"],
        ):
            # The time limit is only for what would otherwise wait for ever.
            result = recast_here(*arguments)
            assert result.returncode == 65, result.stderr
            assert "special file" in result.stderr
    assert state(model.parent) == before


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_file_named_as_the_source_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / SHARD
    SPECIAL[kind](path)
    result = recast_here("inspect", path)
    assert result.returncode == 65
    assert "special file" in result.stderr


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_config_beside_a_single_file_is_refused(kind: str, model: Path) -> None:
    (model / "config.json").unlink()
    SPECIAL[kind](model / "config.json")
    result = recast_here("inspect", model / SHARD)
    assert result.returncode == 65
    assert "config.json" in result.stderr


def repository(root: Path, revision: str = "0" * 40) -> tuple[Path, Path]:
    """An empty snapshot as a Hub cache has it, and the folder of its blobs."""
    snapshot, blobs = (
        root / "models--a--b" / "snapshots" / revision,
        root / "models--a--b" / "blobs",
    )
    snapshot.mkdir(parents=True)
    blobs.mkdir(exist_ok=True)
    return snapshot, blobs


def converted(source: Path) -> dict[str, str]:
    """The result of converting `source`, which is then removed; the report aside."""
    out = Path(os.path.realpath(source)).parent / "converted"
    before = tree(source)
    recast.convert(source, out, to="bf16")
    assert tree(source) == before
    found = tree(out)
    assert not any(entry.startswith("->") for entry in found.values())
    shutil.rmtree(out)
    del found["recast.json"]
    return found


def link_into(blobs: Path, snapshot: Path, model: Path, up: str) -> None:
    for path in model.iterdir():
        (blobs / f"hash-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"{up}/blobs/hash-{path.name}")


def test_a_snapshot_links_to_its_repositorys_blobs(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = repository(tmp_path / "cache")
    link_into(blobs, snapshot, model, "../..")
    assert converted(snapshot) == converted(model)


def test_a_folder_of_a_snapshot_links_to_them_too(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = repository(tmp_path / "cache")
    (snapshot / "unet").mkdir()
    link_into(blobs, snapshot / "unet", model, "../../..")
    assert set(converted(snapshot)) == {"unet", *(f"unet/{name}" for name in converted(model))}
    assert converted(snapshot / "unet") == converted(model)


def test_a_cache_that_lies_behind_a_link_is_the_same(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = repository(tmp_path / "disk")
    link_into(blobs, snapshot, model, "../..")
    (tmp_path / "cache").symlink_to("disk")
    assert converted(tmp_path / "cache" / snapshot.relative_to(tmp_path / "disk")) == converted(
        model
    )


def share(blob: Path, cache: Path) -> Path:
    """Moves a blob to where the cache keeps what its repositories share, as huggingface_hub 2."""
    digest = hashlib.sha256(blob.name.encode()).hexdigest()
    stored = cache / "blobs" / digest[:2] / digest
    stored.parent.mkdir(parents=True, exist_ok=True)
    blob.rename(stored)
    blob.symlink_to(os.path.relpath(stored, blob.parent))
    return stored


def test_a_snapshot_links_to_the_blobs_its_cache_shares(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    snapshot, blobs = repository(cache)
    link_into(blobs, snapshot, model, "../..")
    share(blobs / f"hash-{SHARD}", cache)
    assert converted(snapshot) == converted(model)
    assert recast.inspect(snapshot / SHARD).parameters == 6


def test_the_layout_of_huggingface_hub_with_shared_blobs_converts(
    model: Path, tmp_path: Path
) -> None:
    """Laid out by huggingface_hub itself."""
    store = pytest.importorskip("huggingface_hub.utils._shared_blobs")
    cache = tmp_path / "cache"
    snapshot, blobs = repository(cache)
    link_into(blobs, snapshot, model, "../..")
    blob = blobs / f"hash-{SHARD}"
    published = store.publish_blob_to_shared_store(
        blob_path=blob, xet_hash="ab" * 32, cache_dir=cache, expected_size=blob.stat().st_size
    )
    assert published
    assert Path(os.path.realpath(snapshot / SHARD)).is_relative_to(cache / "blobs")
    assert converted(snapshot) == converted(model)


@pytest.mark.parametrize(
    "name",
    ["{hash}", "xx/{hash}", "{prefix}/deep/{hash}", "{prefix}/{hash}.refs", "{prefix}/notes.txt"],
)
def test_only_the_files_that_a_cache_shares_are_blobs(
    name: str, model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    snapshot, blobs = repository(cache)
    link_into(blobs, snapshot, model, "../..")
    digest = hashlib.sha256(b"").hexdigest()
    canary = cache / "blobs" / name.format(hash=digest, prefix=digest[:2])
    canary.parent.mkdir(parents=True)
    canary.write_bytes(CANARY)
    (snapshot / "link.txt").symlink_to(os.path.relpath(canary, snapshot))
    with unopened(canary):
        refused(snapshot, recast.InputError, "link.txt", str(canary), OUT)


def test_a_folder_without_the_name_of_a_repository_shares_nothing(
    model: Path, tmp_path: Path
) -> None:
    snapshot, blobs = repository(tmp_path / "cache")
    link_into(blobs, snapshot, model, "../..")
    stored = share(blobs / f"hash-{SHARD}", tmp_path / "cache")
    blobs.parent.rename(tmp_path / "cache" / "model")
    moved = tmp_path / "cache" / "model" / "snapshots" / snapshot.name
    with unopened(stored):
        refused(moved, recast.InputError, SHARD, str(stored), OUT)


def test_shared_blobs_that_are_a_link_reach_nothing(
    model: Path, tmp_path: Path, canary: Path
) -> None:
    cache = tmp_path / "cache"
    snapshot, blobs = repository(cache)
    link_into(blobs, snapshot, model, "../..")
    stored = share(blobs / f"hash-{SHARD}", cache)
    stored.unlink()
    stored.symlink_to(canary)
    with unopened(canary):
        refused(snapshot, recast.InputError, SHARD, str(canary), OUT)


def test_a_source_that_is_a_link_is_resolved_first(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = repository(tmp_path / "cache")
    link_into(blobs, snapshot, model, "../..")
    for target in (model, snapshot):
        link = tmp_path / f"link-to-{target.name}"
        link.symlink_to(target)
        assert converted(link) == converted(model)


def test_a_link_inside_the_source_is_followed(model: Path) -> None:
    (model / "sub").mkdir()
    (model / "sub" / "again.safetensors").symlink_to("../model.safetensors")
    (model / "absolute.txt").symlink_to(model / "config.json")
    (model / "roundabout.txt").symlink_to("../model/sub/../config.json")
    out = converted(model)
    assert out["sub/again.safetensors"] == out[SHARD]
    assert out["absolute.txt"] == out["roundabout.txt"] == tree(model)["config.json"]


def test_a_single_file_may_be_a_link_and_its_config_follows_the_rule(
    model: Path, tmp_path: Path
) -> None:
    snapshot, blobs = repository(tmp_path / "cache")
    link_into(blobs, snapshot, model, "../..")
    assert recast.inspect(snapshot / SHARD).parameters == 6
    (tmp_path / "alone.safetensors").symlink_to(model / SHARD)
    assert recast.inspect(tmp_path / "alone.safetensors").parameters == 6
    (model / "config.json").rename(tmp_path / "canary")
    (model / "config.json").symlink_to("../canary")
    with unopened(tmp_path / "canary"), pytest.raises(recast.InputError, match="outside"):
        recast.inspect(model / SHARD)


OUT = "which is outside the model"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_tree_is_refused_with_its_target(
    place: str, relative: bool, model: Path, canary: Path
) -> None:
    path = model / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(canary, path.parent) if relative else canary)
    with unopened(canary):
        refused(model, recast.InputError, place, str(canary), OUT)


def test_the_error_of_a_link_names_the_ways_out(model: Path, canary: Path) -> None:
    (model / "x.safetensors").symlink_to(canary)
    with pytest.raises(recast.InputError) as caught:
        recast.inspect(model)
    assert caught.value.hint
    assert "copy of the file" in caught.value.hint
    assert "convert the directory" in caught.value.hint


def test_an_index_reaches_nothing_through_a_link(model: Path, canary: Path) -> None:
    (model / "x.safetensors").symlink_to("../canary.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": {"w": "x.safetensors"}}))
    with unopened(canary):
        refused(model, recast.InputError, "x.safetensors", OUT)


def test_a_chain_of_links_counts_by_where_it_ends(model: Path, canary: Path) -> None:
    (model.parent / "hop").symlink_to("model/config.json")
    (model / "there-and-back.json").symlink_to("../hop")
    assert recast.inspect(model).parameters == 6
    (model / "first.txt").symlink_to("second.txt")
    (model / "second.txt").symlink_to(canary)
    with unopened(canary):
        refused(model, recast.InputError, OUT)


def test_a_snapshot_reaches_nothing_but_its_repositorys_blobs(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = repository(tmp_path / "cache")
    link_into(blobs, snapshot, model, "../..")
    other = tmp_path / "cache" / "models--other--private" / "blobs"
    (blobs / "deep").mkdir()
    for folder in (other, blobs / "deep", blobs.parent / "refs", snapshot.parent / ("1" * 40)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "canary").write_bytes(CANARY)
        link = snapshot / "link.txt"
        link.symlink_to(os.path.relpath(folder / "canary", snapshot))
        with unopened(folder / "canary"):
            refused(snapshot, recast.InputError, "link.txt", str(folder / "canary"), OUT)
        link.unlink()
    recast.inspect(snapshot)


def test_blobs_that_are_a_link_reach_nothing(model: Path, tmp_path: Path, canary: Path) -> None:
    snapshot, blobs = repository(tmp_path / "cache")
    blobs.rmdir()
    blobs.symlink_to(canary.parent)
    (snapshot / "x.safetensors").symlink_to("../../blobs/canary.safetensors")
    with unopened(canary):
        refused(snapshot, recast.InputError, "x.safetensors", str(canary), OUT)


def test_links_into_a_cache_from_elsewhere_are_refused(model: Path, tmp_path: Path) -> None:
    _, blobs = repository(tmp_path / "cache")
    local = tmp_path / "local"
    local.mkdir()
    link_into(blobs, local, model, str(blobs.parent))
    refused(local, recast.InputError, str(blobs), OUT)


@pytest.mark.parametrize("targets", [["gone"], ["b", "a"], ["a"]], ids=["nowhere", "loop", "self"])
def test_a_link_that_leads_nowhere_is_refused(targets: list[str], model: Path) -> None:
    for name, target in zip("ab", targets, strict=False):
        (model / name).symlink_to(target)
    refused(model, recast.InputError, "is a broken link")


def test_a_directory_behind_a_link_is_refused_even_inside(model: Path) -> None:
    (model / "sub").mkdir()
    (model / "linked").symlink_to("sub")
    (model / "circle").symlink_to(".")
    refused(model, recast.InputError, "a link to a directory")


@pytest.mark.parametrize(("stem", "stale"), [("model", True), ("diffusion_pytorch_model", False)])
def test_only_beside_the_file_that_transformers_prefers_is_an_index_left_over(
    stem: str, stale: bool, tmp_path: Path
) -> None:
    rows = [("w", "F32", [1], bytes(4))]
    (tmp_path / f"{stem}.safetensors").write_bytes(raw_bytes(rows))
    weight_map = {"w": f"{stem}-00001-of-00002.safetensors"}
    index = tmp_path / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if stale:
        plan = recast.plan(tmp_path, to="bf16")
        assert any(text.startswith("left behind") for text in plan.warnings)
        assert [file.path for file in plan.files] == [f"{stem}.safetensors"]
    else:
        with pytest.raises(recast.IndexFileError, match="there is no file"):
            recast.plan(tmp_path, to="bf16")


def test_configs_and_indexes_are_read_as_python_reads_json(model: Path, tmp_path: Path) -> None:
    # As json.loads does: numbers beyond binary64, halves of surrogate pairs, many levels.
    deep = "[" * 400 + "]" * 400
    odd = f'"limit": 1e999, "big": {"9" * 400}, "\\ud800": "\\udc00 \\ud83d\\ude00", "deep": {deep}'
    text = f'{{{odd}, "dtype": "float32"}}\n'
    (model / "config.json").write_text(text)
    index = f'{{"metadata": {{{odd}}}, "weight_map": {{"layer.weight": "model.safetensors"}}}}'
    (model / "model.safetensors.index.json").write_text(index)
    json.loads(text), json.loads(index)
    recast.convert(model, tmp_path / "out", to="bf16")
    written = (tmp_path / "out" / "config.json").read_text()
    assert written == text.replace("float32", "bfloat16")
    written = (tmp_path / "out" / "model.safetensors.index.json").read_text()
    assert written.replace('"total_size": 12, ', "") == index

    # What json.loads refuses, transformers cannot load.
    mantissas = ("0", "01", "1.", ".5", "1" * 400 + ".5", "1.79769313486231580")
    exponents = ("", "e5", "E+400", "e308", "e-999", "e", "e+")
    numbers = [mantissa + exponent for mantissa in mantissas for exponent in exponents]
    numbers += ["NaN", "Infinity", "Infinity1", "NaN.5", "nan", "true", "1_0", "0x1"]
    for number in (sign + number for sign in ("", "-", "+") for number in numbers):
        (model / "config.json").write_text(f'{{"limit": [{number}]}}')
        try:
            json.loads((model / "config.json").read_text())
        except ValueError:
            with pytest.raises(recast.InputError):
                recast.plan(model, to="bf16")
        else:
            recast.plan(model, to="bf16")

    (model / "config.json").write_text("[" * 501 + "]" * 501)
    with pytest.raises(recast.InputError, match="nested 501 levels deep, and recast reads at most"):
        recast.plan(model, to="bf16")
