"""The command `recast`: options in, data on stdout, everything else on stderr."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import click
from click.core import ParameterSource

import recast
from recast import terminal
from recast.array import MAX_THREADS, POLICIES, float_name
from recast.errors import RecastError, StorageError, UsageError, VerificationError


class Interrupted(BaseException):
    """A signal asked to stop. Not an `Exception`, so that only cleanup stands in its way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """What a report of a fault should say, without importing torch."""
    if not wanted or context.resilient_parsing:
        return
    from importlib import metadata

    from recast._core import simd_level

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    _print(f"recast {recast.__version__}\nsimd   {simd_level()}\ntorch  {torch}\n")
    context.exit()


@click.group(invoke_without_command=True, context_settings={"max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version, the instruction set in use, and the version of torch.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Change the dtype of a model checkpoint: exactly, fast, all or nothing.

    \b
    recast inspect model                      what it is made of; does it fit on the GPU
    recast convert model model-bf16 --to bf16
    recast verify model model-bf16            is the result what it should be
    recast bits 3.14                          one value, bit by bit, and how a cast rounds it
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(UsageError.exit_code)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _target(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else float_name(value)


@cli.command()
@click.argument("source")
@click.argument("dest")
@click.option(
    "--to",
    required=True,
    callback=_target,
    metavar="fp32|fp16|bf16",
    help="The dtype to cast to; float32, half, bfloat16 and the like work too.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Leave matching tensors as they are: a glob ('vae/*' is a component), or a regular "
    "expression after 're:'. Can be given many times.",
)
@click.option(
    "--no-auto-keep", is_flag=True, help="Also cast the tensors that loaders need in fp32."
)
@click.option(
    "--on-overflow",
    type=click.Choice(POLICIES),
    default="error",
    show_default=True,
    help="What to do when finite values are beyond the target's range.",
)
@click.option(
    "--verify",
    metavar="auto|cpu|cuda[:N]",
    help="Check every value of the result on this device before publishing it; needs torch.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    metavar="N",
    help="Worker threads; default: all CPUs.",
)
@click.option(
    "--io",
    type=click.Choice(["auto", "mmap", "read"]),
    default="auto",
    show_default=True,
    help="How the source is read: through a memory map, or by positioned reads.",
)
@click.option(
    "--no-sync", is_flag=True, help="Skip fsync: faster, but a power cut can lose the result."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the model in DEST once the new one is ready.",
)
@click.option(
    "--sha256", is_flag=True, help="Add SHA256SUMS, which `sha256sum -c` reads, to the result."
)
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@as_json_option
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def convert(
    source: str,
    dest: str,
    to: str,
    keep: tuple[str, ...],
    no_auto_keep: bool,
    on_overflow: str,
    verify: str | None,
    threads: int | None,
    io: str,
    no_sync: bool,
    overwrite: bool,
    sha256: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert the checkpoint SOURCE into the new directory DEST.

    SOURCE is a .safetensors file or a directory that holds some. DEST appears complete or not at
    all. The same command again continues where it was interrupted, and does nothing when done.

    \b
    recast convert model model-bf16 --to bf16
    recast convert model model-fp16 --to fp16 --keep 'lm_head.*' --on-overflow saturate
    recast convert model model-bf16 --to bf16 --dry-run
    """
    from recast import api, report

    asked: dict[str, Any] = {
        "to": to,
        "keep": keep,
        "auto_keep": not no_auto_keep,
        "on_overflow": on_overflow,
        "overwrite": overwrite,
        "sha256": sha256,
    }
    if dry_run:
        planned, found = api.look(source, dest, **asked)
        if as_json:
            _print(report.plan_json(planned, dest, found))
        elif not quiet:
            _print(report.plan_text(planned, dest, found))
        return
    with terminal.progress(sys.stderr.isatty() and not (quiet or as_json)) as progress:
        finished = api.convert(
            source,
            dest,
            **asked,
            verify=verify,
            threads=threads,
            io=io,
            sync=not no_sync,
            progress=progress,
        )
    if as_json:
        _print(finished.to_json())
    elif not quiet:
        _print(report.report_text(finished))


@cli.command()
@click.argument("path")
@as_json_option
@click.option("--tensors", is_flag=True, help="List every tensor: name, dtype, shape, bytes, file.")
def inspect(path: str, as_json: bool, tensors: bool) -> None:
    """Show what PATH is made of, and the memory it takes on a GPU in each dtype.

    \b
    recast inspect model
    recast inspect model/model.safetensors --tensors | grep norm
    """
    import gc

    from recast import api
    from recast.show.inspect import inspection_text, tensors_text

    # A hundred thousand tensors are no garbage, and looking at them again and again takes time.
    gc.disable()
    inspection = api.inspect(path)
    if as_json:
        _print(inspection.to_json(tensor_list=tensors))
    elif tensors:
        _print(tensors_text(inspection))
    else:
        _print(inspection_text(inspection))


# A negative number is not an option, and no option begins with a single dash.
@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("value")
@click.option(
    "--from",
    "source",
    default="fp32",
    show_default=True,
    callback=_target,
    metavar="fp32|fp16|bf16",
    help="The dtype that holds the value.",
)
@click.option(
    "--to",
    callback=_target,
    metavar="fp32|fp16|bf16",
    help="The dtype to cast it to; default: both others.",
)
@as_json_option
def bits(value: str, source: str, to: str | None, as_json: bool) -> None:
    """Show the bits of VALUE, and how a cast rounds it.

    VALUE is a decimal number, inf, nan, or all bits of the dtype in hexadecimal.

    \b
    recast bits 3.14
    recast bits -65520 --to fp16
    recast bits 0x4248 --from fp16
    """
    from recast.bits import Bits
    from recast.dtypes import CASTABLE
    from recast.show.bits import bits_text

    targets = [name for name in ([to] if to else CASTABLE) if name != source]
    found = Bits.of(value, source, targets)
    _print(found.to_json() if as_json else bits_text(found))


@cli.command()
@click.argument("source")
@click.argument("dest", required=False)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]",
    help="Where the result is loaded and compared; auto is a GPU where there is one.",
)
@click.option(
    "--samples",
    type=click.IntRange(0),
    metavar="N",
    help="Random blocks of 4,096 values to compare in each tensor, beside both ends; default: 64.",
)
@click.option("--full", is_flag=True, help="Compare every value.")
@click.option(
    "--loader",
    type=click.Choice(["safetensors", "transformers"]),
    default="safetensors",
    show_default=True,
    help="Load the tensors alone, or the model as a user of transformers does.",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Draw the same random blocks again."
)
@as_json_option
def verify(source: str, dest: str | None, as_json: bool, **options: Any) -> int:
    """Check that DEST is SOURCE in another dtype: structure, values, and memory on a GPU.

    With DEST alone, check its files against the checksums in its recast.json.

    \b
    recast verify model model-bf16
    recast verify model model-bf16 --full --device cuda:1
    recast verify model model-bf16 --loader transformers --json
    recast verify model-bf16
    """
    with terminal.progress(sys.stderr.isatty() and not as_json) as progress:
        if dest is None:
            from recast import published
            from recast.show.verify import published_text

            _refuse_for_files_alone()
            checked = published.check(source, progress=progress)
            text = checked.to_json() if as_json else published_text(checked)
            passed = checked.passed
        else:
            from recast.show.verify import verification_text

            found = recast.verify(source, dest, progress=progress, **options)
            text = found.to_json() if as_json else verification_text(found)
            passed = found.passed
    _print(text)
    return 0 if passed else VerificationError.exit_code


def _refuse_for_files_alone() -> None:
    """Options of a verification that reads the source mean nothing without one."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "")
        if (
            parameter.name not in ("source", "dest", "as_json")
            and given is ParameterSource.COMMANDLINE
        ):
            raise UsageError(
                f"{parameter.opts[0]} needs a source: DEST alone is checked by its checksums only",
                "recast verify SOURCE DEST",
            )


def _print(text: str) -> None:
    """Writes data to stdout. A reader that has seen enough, such as `head`, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise StorageError(f"cannot write to standard output: {error.strerror}") from error


def _complain(message: str, hint: str | None = None, notes: Sequence[str] = ()) -> None:
    # Messages can have several lines: one for each tensor, for example. Names in them have none.
    lines = ["error: " + "\n".join(terminal.plain(line) for line in message.split("\n"))]
    if hint is not None:
        lines.append(f"hint: {terminal.plain(hint)}")
    lines += [f"note: {terminal.plain(note)}" for note in notes]
    _say("\n".join(lines))


def _say(text: str) -> None:
    """Writes to stderr. Where nobody can hear it, the exit code still tells."""
    try:
        click.echo(text, err=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Python flushes `stream` again on its way out, and must find nothing to complain about."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def _run() -> int:
    """Runs the command and returns its exit code: every way to fail ends here."""
    try:
        # In this mode click returns the code of `--help` and `--version`, and raises its errors.
        code = cli.main(prog_name="recast", standalone_mode=False)
    except RecastError as error:
        _complain(error.message, error.hint, getattr(error, "__notes__", []))
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "recast"
        message = terminal.shown(error.format_message())
        _complain(message, f"`{command} --help` lists the options")
        return UsageError.exit_code
    except Interrupted as error:
        _say(terminal.plain("; ".join(["interrupted", *getattr(error, "__notes__", [])])))
        return error.exit_code
    return code if isinstance(code, int) else 0


def main() -> None:
    """The entry point of the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # What the parent chose to ignore (nohup, a background job) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    # A stream that the caller closed is None here; nobody reads what is written instead.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A tensor's name may hold what the terminal's encoding does not.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run())
