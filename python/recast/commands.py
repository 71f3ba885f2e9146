"""What can be typed after `recast`: commands, their arguments and options, and what each calls."""

import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

import recast
from recast import terminal
from recast.errors import UsageError, VerificationError
from recast.options import MAX_THREADS, Options, float_name

Command = TypeVar("Command", bound=Callable[..., Any])


def _print_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """What a bug report should say, without importing torch."""
    if not wanted or context.resilient_parsing:
        return
    from importlib import metadata

    from recast._core import simd_level

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    terminal.write(f"recast {recast.__version__}\nsimd   {simd_level()}\ntorch  {torch}\n")
    context.exit()


def conversion_options(command: Command) -> Command:
    """Gives `command` an option for each field of `Options`."""
    types = get_type_hints(Options, include_extras=True)
    for field in reversed(fields(Options)):
        kind, about = get_args(types[field.name])
        name = field.name.replace("_", "-")
        how: dict[str, Any] = {"help": about.help, "metavar": about.metavar}
        if field.default is True:
            name = f"no-{name}"
            how |= {"is_flag": True, "callback": _negated}
        elif kind is bool:
            how |= {"is_flag": True}
        elif get_origin(kind) is Literal:
            how |= {"type": click.Choice(get_args(kind)), "default": field.default}
            how |= {"show_default": True}
        elif int in get_args(kind):
            how |= {"type": click.IntRange(1, MAX_THREADS)}
        elif field.default == ():
            how |= {"multiple": True}
        elif field.default is MISSING:
            how |= {"required": True}
        command = click.option(f"--{name}", field.name, **how)(command)
    return command


def _negated(context: click.Context, parameter: click.Parameter, given: bool) -> bool:
    return not given


def _dtype(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else float_name(value)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
SETTINGS: dict[str, Any] = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}


@click.group(invoke_without_command=True, context_settings=SETTINGS)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version, the instruction set in use, and the version of torch.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Change the dtype of a model checkpoint: exactly, fast, all or nothing.

    \b
    recast inspect model          what it is made of; does it fit on the GPU
    recast convert model model-bf16 --to bf16
    recast verify model model-bf16
    recast bits 3.14              one value, bit by bit, and how a cast rounds it
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(UsageError.exit_code)


@cli.command()
@click.argument("source")
@click.argument("dest", required=False, metavar="DEST")
@conversion_options
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing; needs no DEST.")
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def convert(
    context: click.Context,
    /,
    source: str,
    dest: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Convert the checkpoint SOURCE into the new directory DEST.

    SOURCE is a .safetensors file, a file that torch.save wrote (.bin, .pt, .pth, .ckpt; nothing in
    it is run), or a directory that holds some. DEST appears complete or not at
    all. The same command again continues where it was interrupted, and does nothing when done.

    \b
    recast convert model model-bf16 --to bf16
    recast convert model model-fp16 --to fp16 --on-overflow saturate
    recast convert model model-fp16 --to fp16 --keep 'lm_head.*'
    recast convert model --to bf16 --dry-run
    """
    from recast import api
    from recast.show import convert as show

    options = Options(**given)
    if dry_run:
        planned = api.look(source, dest, options)
        if as_json or not quiet:
            terminal.write(planned.to_json() if as_json else show.dry_run_text(planned))
        return
    if dest is None:
        raise click.MissingParameter(ctx=context, param=context.command.params[1])
    with terminal.progress(sys.stderr.isatty() and not (quiet or as_json)) as progress:
        report = api.carry_out(source, dest, options, progress)
    if as_json or not quiet:
        terminal.write(report.to_json() if as_json else show.report_text(report))


@cli.command(short_help="Show what PATH is made of, and its memory on a GPU.")
@click.argument("path")
@json_option
@click.option("--tensors", is_flag=True, help="List every tensor: name, dtype, shape, bytes, file.")
@click.option("--key", metavar="NAME", help="The state dict of a pickle that holds several.")
def inspect(path: str, as_json: bool, tensors: bool, key: str | None) -> None:
    """Show what PATH is made of, and the memory it takes on a GPU in each dtype.

    \b
    recast inspect model
    recast inspect model/model.safetensors --tensors | grep norm
    """
    import gc

    from recast import api
    from recast.show.inspect import inspection_text, tensors_text

    # It would rescan a hundred thousand live objects.
    gc.disable()
    inspection = api.inspect(path, key=key)
    if as_json:
        terminal.write(inspection.to_json(tensor_list=tensors))
    else:
        terminal.write((tensors_text if tensors else inspection_text)(inspection))


# A negative number is not an option, and but for -h no option begins with a single dash.
@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("value")
@click.option(
    "--from",
    "source",
    default="fp32",
    show_default=True,
    callback=_dtype,
    metavar="fp32|fp16|bf16",
    help="The dtype that holds the value.",
)
@click.option(
    "--to",
    callback=_dtype,
    metavar="fp32|fp16|bf16",
    help="The dtype to cast it to; default: both others.",
)
@json_option
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
    terminal.write(found.to_json() if as_json else bits_text(found))


@cli.command(short_help="Check that DEST is SOURCE in another dtype.")
@click.argument("paths", nargs=-1, metavar="[SOURCE] DEST")
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
@json_option
@click.pass_context
def verify(context: click.Context, /, paths: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Check that DEST is SOURCE in another dtype: structure, values, and memory on a GPU.

    With DEST alone, check its files against the checksums in its recast.json.

    \b
    recast verify model model-bf16
    recast verify model model-bf16 --full --device cuda:1
    recast verify model model-bf16 --loader transformers --json
    recast verify model-bf16
    """
    _check_paths(context, paths)
    with terminal.progress(sys.stderr.isatty() and not as_json) as bar:
        progress = partial(bar, "comparing") if bar else None
        if len(paths) == 1:
            from recast import published
            from recast.show.verify import published_text

            checked = published.check(paths[0], progress=progress)
            text = checked.to_json() if as_json else published_text(checked)
            passed = checked.passed
        else:
            from recast.show.verify import verification_text

            found = recast.verify(*paths, progress=progress, **options)
            text = found.to_json() if as_json else verification_text(found)
            passed = found.passed
    terminal.write(text)
    return 0 if passed else VerificationError.exit_code


def _check_paths(context: click.Context, paths: tuple[str, ...]) -> None:
    """DEST is required, and options for comparing with a source require one."""
    if not paths:
        raise click.MissingParameter(ctx=context, param_hint="'DEST'", param_type="argument")
    if len(paths) > 2:
        raise click.UsageError(f"Got unexpected extra argument ({paths[2]})", context)
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if len(paths) == 1 and given and parameter.name not in ("paths", "as_json"):
            raise UsageError(
                f"{parameter.opts[0]} needs a source: DEST alone is checked by its checksums only",
                "give the source too: recast verify SOURCE DEST",
            )
