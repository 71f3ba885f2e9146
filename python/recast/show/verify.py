"""What `verify` prints: errors first, then the verdict and what was compared."""

from typing import TYPE_CHECKING

from recast.terminal import counted, grid, marked, plain, render, size

if TYPE_CHECKING:
    from rich.text import Text

    from recast.published import PublishedCheck
    from recast.verification.result import LikelyCause, Verification

# More lines than this help nobody on a terminal; `--json` lists everything.
LISTED = 20
# So many kinds of problems are shown where nearly everything is wrong.
KINDS = 4
CAUSES = {
    "other_tensors": (
        "{dest} does not look like a conversion of {source}, which lacks {tensors:,} of its {of:,} "
        "tensors (by name and shape)"
    ),
    "other_files": (
        "{tensors:,} of the {of:,} tensors in {dest} are in other files than in {source}; recast "
        "keeps the files of the source"
    ),
    "other_values": (
        "{dest} does not look like a conversion of {source}: {tensors:,} of the {of:,} compared "
        "tensors differ in nearly every value"
    ),
}


def verification_text(found: "Verification") -> str:
    """What `verify SOURCE DEST` prints."""
    target = f" in {found.to}" if found.to else ""
    title = f"{found.source} -> {found.dest}{target}, {found.loader} on {found.device}"
    rows = [("values", _values(found))]
    for name in ("requested", "allocated", "reserved") if found.memory else ():
        figure = getattr(found.memory, name)
        text = f"{size(figure.expected)} predicted"
        if figure.measured is None:
            text += " on a GPU"
        else:
            same = ", the same to the byte" if figure.measured == figure.expected else ""
            text += f", {size(figure.measured)} measured{same}"
        rows.append((name, text))
    rows.append(("time", f"{found.seconds:.2f} s"))
    lines = marked("note", "bold yellow", found.notes)
    return render(*_errors(found), *lines, _verdict(found.passed, title), grid(rows))


def _errors(found: "Verification") -> list["Text"]:
    failures, cause = found.failures(), found.likely_cause
    listed = _examples(found) if cause else failures[:LISTED]
    if rest := len(failures) - len(listed):
        listed.append(f"and {rest:,} more; --json lists all")
    if cause is None:
        return marked("error", "bold red", listed)
    hint = f"check that {found.dest} was converted from {found.source}"
    errors = marked("error", "bold red", [cause_text(found, cause), *listed])
    return [*errors, *marked("hint", "bold", [hint])]


def _examples(found: "Verification") -> list[str]:
    """One problem of each kind, and one wrong value: enough where nearly everything is wrong."""
    first = {problem.kind: problem.message for problem in reversed(found.problems)}
    values = [mismatch.message for mismatch in found.mismatches[:1]]
    return [*list(reversed(first.values()))[:KINDS], *values]


def cause_text(found: "Verification", cause: "LikelyCause") -> str:
    """Why nearly everything is wrong, as a sentence."""
    counts = {"tensors": cause.tensors, "of": cause.of}
    return CAUSES[cause.cause].format(source=found.source, dest=found.dest, **counts)


def _values(found: "Verification") -> str:
    """How many values were compared, and how they were chosen."""
    tensors = counted(found.tensors_checked, "tensor")
    if not found.tensors_checked:
        return "none: no tensor could be compared"
    if found.values_checked == found.values_total:
        return f"all {found.values_total:,} in {tensors}"
    blocks = counted(found.samples or 0, "random block")
    return (
        f"{found.values_checked:,} of {found.values_total:,} in {tensors}: both ends of each, and "
        f"up to {blocks} between them (seed {found.seed})"
    )


def published_text(found: "PublishedCheck") -> str:
    """What `verify DEST` prints."""
    errors = [f"{plain(each['file'])} {each['problem']}" for each in found.problems]
    compared = f"{counted(found.files, 'file')}, {size(found.bytes)}"
    title = f"{found.dest}, {compared} compared with the checksums in recast.json"
    return render(*marked("error", "bold red", errors), _verdict(found.passed, title))


def _verdict(passed: bool, title: str) -> "Text":
    from rich.text import Text

    verdict, style = ("passed", "bold green") if passed else ("FAILED", "bold red")
    return Text.assemble((verdict, style), f": {plain(title)}")
