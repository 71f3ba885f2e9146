"""`--keep` finds tensors by what people see: a component's folder, a name with any characters."""

import json
from pathlib import Path

import pytest
import recast
from support import fp32_bytes, raw_bytes, recast_here, stored

FILES = {
    "unet/model.safetensors": ["conv_in.weight", "mid/attn/weight"],
    "vae/model.safetensors": ["decoder.conv.weight", "encoder.norm.weight"],
    "vae/tiny/model.safetensors": ["conv_in.weight"],
    "top.safetensors": ["conv_in.weight", "blocks[0].norm.weight", "blocks[1].norm.weight"],
}
VAE = {"vae: decoder.conv.weight", "vae: encoder.norm.weight", "vae/tiny: conv_in.weight"}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    root = tmp_path / "pipeline"
    for file, names in FILES.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        rows = [(name, "F32", [4], fp32_bytes(4)) for name in names]
        (root / file).write_bytes(raw_bytes(rows))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "X"}))
    return root


def kept(pipeline: Path, *patterns: str) -> set[str]:
    """What a plan keeps, each as `FOLDER: NAME`."""
    tensors = recast.plan(pipeline, to="bf16", keep=patterns).tensors
    folders = {tensor: Path(tensor.file).parent.as_posix() for tensor in tensors}
    return {f"{folder}: {t.name}" for t, folder in folders.items() if t.action == "keep"}


def test_a_pattern_with_a_folder_keeps_that_component_and_no_other(
    pipeline: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = recast_here("convert", pipeline, out, "--to", "bf16", "--keep", "vae/*")
    assert result.returncode == 0, result.stderr
    for file, names in FILES.items():
        dtypes = {name: dtype for name, (dtype, *_) in stored(out / file).items()}
        assert dtypes == dict.fromkeys(names, "F32" if file.startswith("vae/") else "BF16")
    assert recast.verify(pipeline, out, device="cpu").passed


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("vae/*", VAE),
        ("vae/*.weight", VAE),
        ("vae/decoder.*", {"vae: decoder.conv.weight"}),
        ("vae/tiny/*", {"vae/tiny: conv_in.weight"}),
        ("*/conv_in.weight", {"unet: conv_in.weight", "vae/tiny: conv_in.weight"}),
        ("unet/conv_in.weight", {"unet: conv_in.weight"}),
        ("{unet,vae}/conv*", {"unet: conv_in.weight"}),
        ("re:^vae/.*(norm|conv_in)", {"vae: encoder.norm.weight", "vae/tiny: conv_in.weight"}),
        ("re:tiny/", {"vae/tiny: conv_in.weight"}),
    ],
)
def test_a_pattern_with_a_slash_is_about_folders_and_names(
    pattern: str, expected: set[str], pipeline: Path
) -> None:
    assert kept(pipeline, pattern) == expected


@pytest.mark.parametrize("pattern", ["mid/attn/weight", "mid/*", "unet/mid/*", "re:^mid/attn"])
def test_a_slash_in_a_tensors_name_is_matched_too(pattern: str, pipeline: Path) -> None:
    assert kept(pipeline, pattern) == {"unet: mid/attn/weight"}


def test_a_pattern_without_a_slash_is_about_names_in_all_components(pipeline: Path) -> None:
    everywhere = {"unet: conv_in.weight", "vae/tiny: conv_in.weight", ".: conv_in.weight"}
    assert kept(pipeline, "conv_in.*") == kept(pipeline, "re:^conv_in") == everywhere


def test_a_single_file_is_in_no_component(pipeline: Path) -> None:
    with pytest.raises(recast.UsageError, match="matches no tensor"):
        recast.plan(pipeline / "vae" / "model.safetensors", to="bf16", keep=["vae/*"])


def test_a_name_with_brackets_is_matched_as_it_is(pipeline: Path) -> None:
    assert kept(pipeline, "blocks[0].norm.weight") == {".: blocks[0].norm.weight"}
    assert kept(pipeline, "blocks[[]?].*") == {f".: blocks[{n}].norm.weight" for n in (0, 1)}


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("blocks[0].*", "try keep=['blocks[[]0].*']: a bracket"),
        ("vae", "try keep=['vae/*'], which"),
        ("vae.*", "try keep=['vae/*'], which"),
        ("vae/tiny/", "try keep=['vae/tiny/*'], which"),
        ("vae/decoder.conv.wieght", "vae/decoder.conv.weight"),
        ("vea/*", "vae/"),
        ("decoder.conv.wieght", "are: decoder.conv.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_hints_at_one_that_does(
    pattern: str, hint: str, pipeline: Path
) -> None:
    with pytest.raises(recast.UsageError, match="matches no tensor") as caught:
        recast.plan(pipeline, to="bf16", keep=[pattern])
    assert hint in str(caught.value.hint)
