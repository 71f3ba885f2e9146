"""A place is what people mean by its name: a folder of a Hub cache, an address, a Hub id."""

import os
import shutil
from pathlib import Path

import pytest
import recast
from hostile import CANARY, SHARD, refused, unopened
from support import recast_here, stored, tree

REVISIONS = ["a" * 40, "b" * 40]


def repository(model: Path, revisions: list[str], main: str | None) -> Path:
    """The folder of a repository in a Hub cache, with `model` as each of its snapshots."""
    folder = model.parent / "hub" / "models--org--name"
    for name in ("blobs", "refs", "snapshots"):
        (folder / name).mkdir(parents=True)
    for revision in revisions:
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir()
        for path in model.iterdir():
            blob = folder / "blobs" / f"{revision}-{path.name}"
            blob.write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    if main is not None:
        (folder / "refs" / "main").write_text(main)
    return folder


@pytest.mark.parametrize("main", [REVISIONS[1], f"{REVISIONS[1]}\n"], ids=["bare", "with newline"])
def test_a_repository_of_the_hub_cache_is_the_snapshot_that_main_names(
    main: str, model: Path, tmp_path: Path
) -> None:
    folder = repository(model, REVISIONS, main)
    snapshot = folder / "snapshots" / REVISIONS[1]
    before = tree(folder)
    report = recast.convert(folder, tmp_path / "out", to="bf16")
    assert tree(folder) == before
    assert set(tree(tmp_path / "out")) == {SHARD, "config.json", "recast.json"}
    assert {dtype for dtype, *_ in stored(tmp_path / "out" / SHARD).values()} == {"BF16"}
    assert report.source == str(snapshot)
    (warning,) = report.warnings
    assert REVISIONS[1] in warning
    assert "refs/main" in warning
    assert recast.inspect(folder).path == str(snapshot)
    found = recast.verify(folder, tmp_path / "out", device="cpu")
    assert found.passed
    assert found.source == str(snapshot)


@pytest.mark.parametrize(
    "main", [None, "c" * 40, "../snapshots/" + "a" * 40, "", "\xff", "." * 999]
)
def test_a_repository_with_one_snapshot_is_that_snapshot(main: str | None, model: Path) -> None:
    folder = repository(model, REVISIONS[:1], main)
    assert recast.inspect(folder).path == str(folder / "snapshots" / REVISIONS[0])
    warnings = recast.plan(folder, to="bf16").warnings
    assert any("the only one there" in warning for warning in warnings)


MAIN = [None, "c" * 40, f"../snapshots/{REVISIONS[0]}", f"{REVISIONS[0]}/", "..", ".", ""]
MAIN += [f"{REVISIONS[0]}\n{REVISIONS[1]}", f"{REVISIONS[0]}\0", REVISIONS[0] + " " * 300]


@pytest.mark.parametrize("main", MAIN)
def test_a_repository_whose_main_is_unclear_names_its_snapshots(
    main: str | None, model: Path
) -> None:
    folder = repository(model, REVISIONS, main)
    refused(folder, recast.InputError, "models--org--name", "2 snapshots", *REVISIONS)
    with pytest.raises(recast.InputError) as caught:
        recast.inspect(folder)
    assert f"snapshots/{REVISIONS[0]}" in str(caught.value.hint)


def test_no_more_than_a_handful_of_snapshots_are_named(model: Path) -> None:
    revisions = [f"{number:040x}" for number in range(50)]
    folder = repository(model, revisions, None)
    with pytest.raises(recast.InputError, match="50 snapshots") as caught:
        recast.inspect(folder)
    assert sum(revision in caught.value.message for revision in revisions) == 5


def test_a_repository_without_a_snapshot_is_an_incomplete_download(model: Path) -> None:
    folder = repository(model, [], None)
    (folder / "blobs" / "x.safetensors").write_bytes(CANARY)
    refused(folder, recast.InputError, "models--org--name", "without a snapshot")


def test_main_and_its_snapshot_are_not_followed_out_of_the_repository(
    model: Path, tmp_path: Path
) -> None:
    folder = repository(model, REVISIONS, None)
    canary = tmp_path / "canary"
    canary.write_text("c" * 40)
    (folder / "refs" / "main").symlink_to(canary)
    (folder / "snapshots" / ("c" * 40)).symlink_to(model)
    with unopened(canary):
        refused(folder, recast.InputError, "2 snapshots")
    (folder / "refs" / "main").unlink()
    (folder / "refs" / "main").write_text("c" * 40)
    refused(folder, recast.InputError, "2 snapshots")


def test_a_ref_that_is_a_pipe_is_not_waited_for(model: Path) -> None:
    folder = repository(model, REVISIONS, None)
    os.mkfifo(folder / "refs" / "main")
    result = recast_here("inspect", folder)
    assert result.returncode == 65
    assert "2 snapshots" in result.stderr


def test_a_whole_hub_cache_is_refused_and_a_repository_named(model: Path) -> None:
    folder = repository(model, REVISIONS[:1], None)
    refused(folder.parent, recast.InputError, "is a whole Hub cache")
    with pytest.raises(recast.InputError) as caught:
        recast.inspect(folder.parent)
    assert str(folder) in str(caught.value.hint)


def test_a_model_with_folders_of_those_names_is_a_model(model: Path, tmp_path: Path) -> None:
    for name in ("blobs", "refs", "snapshots/old"):
        (model / name).mkdir(parents=True)
        (model / name / "notes.txt").write_text("x")
    report = recast.convert(model, tmp_path / "out", to="bf16")
    assert "snapshots/old/notes.txt" in tree(tmp_path / "out")
    assert report.source == str(model)


ADDRESSES = {
    "s3://bucket/model": "s3://",
    "gs://bucket/model": "gs://",
    "az://container/model": "az://",
    "hf://org/name": "hf://",
    "https://example.com/model.safetensors": "https://",
    "file:///models/name": "file://",
    "x-my.store+2://model": "x-my.store+2://",
    "S3://bucket": "S3://",
    "s3:///": "s3://",
}


def commands(place: str) -> dict[str, tuple[str, ...]]:
    return {
        "convert from": ("convert", place, "out", "--to", "bf16"),
        "convert to": ("convert", "model", place, "--to", "bf16"),
        "dry run": ("convert", "model", place, "--to", "bf16", "--dry-run"),
        "inspect": ("inspect", place),
        "verify from": ("verify", place, "model", "--device", "cpu"),
        "verify": ("verify", "model", place, "--device", "cpu"),
        "verify alone": ("verify", place),
    }


@pytest.mark.parametrize("place", ADDRESSES)
def test_an_address_is_refused_by_every_command_and_makes_no_directory(
    place: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    before = tree(model.parent)
    calls = {
        "convert from": lambda: recast.convert(place, "out", to="bf16"),
        "convert to": lambda: recast.convert("model", place, to="bf16"),
        "inspect": lambda: recast.inspect(place),
        "verify from": lambda: recast.verify(place, "model", device="cpu"),
        "verify": lambda: recast.verify("model", place, device="cpu"),
    }
    for name, call in calls.items():
        with pytest.raises(recast.UsageError) as caught:
            call()
        assert caught.value.message.startswith(f"{place}: '{ADDRESSES[place]}'"), name
        assert "local paths" in caught.value.message
        assert caught.value.hint
        assert tree(model.parent) == before, name


@pytest.mark.parametrize("name", commands(""))
def test_an_address_is_a_usage_error_of_the_command(name: str, model: Path) -> None:
    before = tree(model.parent)
    result = recast_here(*commands("s3://bucket/model")[name], cwd=model.parent)
    assert result.returncode == 2
    assert "s3://" in result.stderr
    assert "hint: " in result.stderr
    assert tree(model.parent) == before


def test_an_address_that_went_through_pathlib_is_one_still(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    before = tree(model.parent)
    for place in (Path("s3://bucket/model"), Path("hf://org/name")):
        with pytest.raises(recast.UsageError, match="local paths"):
            recast.inspect(place)
        with pytest.raises(recast.UsageError, match="local paths"):
            recast.convert(model, place, to="bf16")
    assert tree(model.parent) == before


@pytest.mark.parametrize("name", ["a:b", "1x://y", "a b://c", "x:/y", "://x", "dir/s3://x"])
def test_what_only_looks_like_an_address_is_a_path(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    recast.convert(model, name, to="bf16")
    assert recast.inspect(name).parameters == 6


DOWNLOADS = {
    "hf://org/name": "hf download org/name --local-dir name",
    "hf://models/org/name": "hf download org/name --local-dir name",
    "hf://org/name@v1.0": "hf download org/name --revision v1.0 --local-dir name",
    "hf://org/name@main/model.safetensors": "hf download org/name --revision main --local-dir name",
    "https://huggingface.co/org/name": "hf download org/name --local-dir name",
    "https://huggingface.co/org/name/tree/pr?x=1": "hf download org/name --revision pr --local-dir",
    "https://hf.co/org/na-me_1.5": "hf download org/na-me_1.5 --local-dir na-me_1.5",
    "hf:/org/name": "hf download org/name --local-dir name",
}


@pytest.mark.parametrize("place", DOWNLOADS)
def test_an_address_on_the_hub_hints_at_the_command_that_downloads_it(place: str) -> None:
    with pytest.raises(recast.UsageError) as caught:
        recast.inspect(place)
    assert f"`{DOWNLOADS[place]}" in str(caught.value.hint)


@pytest.mark.parametrize(
    "place",
    [
        "hf://datasets/org/name",
        "hf://org",
        "hf://org/$(touch x)",
        "hf://org/-name",
        "https://example.com/org/name",
        "https://huggingface.co/datasets/org/name",
    ],
)
def test_no_command_is_made_up_for_what_is_no_model_on_the_hub(place: str) -> None:
    with pytest.raises(recast.UsageError) as caught:
        recast.inspect(place)
    assert "hf download" not in str(caught.value.hint)


def test_a_result_is_uploaded_and_not_downloaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(recast.UsageError) as caught:
        recast.convert(model, "hf://org/name", to="bf16")
    assert "hf upload org/name" in str(caught.value.hint)


@pytest.mark.parametrize("place", ["file:///a/b", "file://localhost/a/b", "file:/a/b"])
def test_a_file_address_hints_at_the_plain_path(place: str) -> None:
    with pytest.raises(recast.UsageError) as caught:
        recast.inspect(place)
    assert str(caught.value.hint).endswith(" /a/b")


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-hf", "org/name_1.5"])
def test_a_hub_id_hints_at_the_command_that_downloads_it(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    for attempt in (recast.inspect, lambda source: recast.convert(source, "out", to="bf16")):
        with pytest.raises(recast.InputError, match="no such file or directory") as caught:
            attempt(name)
        assert f"`hf download {name} --local-dir {name.split('/')[1]}`" in str(caught.value.hint)
    shutil.copytree(model, name)
    assert recast.inspect(name).parameters == 6


@pytest.mark.parametrize(
    "name",
    ["name", "a/b/c", "./name", "../name", "/name", "~/name", "model/gone", "a/b.safetensors"],
)
def test_a_path_that_is_no_hub_id_gets_no_such_command(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(recast.InputError, match="no such file or directory") as caught:
        recast.inspect(name)
    assert "--local-dir" not in str(caught.value.hint)
