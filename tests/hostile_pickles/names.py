"""Globals that no tensor needs, however they are written, reached and used."""

import re

from pickle_bytes import (
    EMPTY_TUPLE,
    NONE,
    REDUCE,
    archive,
    call,
    dict_of,
    entries_of,
    get,
    integer,
    list_of,
    named,
    numbers,
    ordered,
    pickled,
    put,
    storage,
    tensor,
    text,
    tuple_of,
)

from hostile_pickles.case import CANARY, TOUCH, Hostile, bad, beside, instead, shell

OPEN = f"open('{CANARY}', 'w').close()"
IMPORTED = call("builtins.__import__", text("os"))
THROUGH = call(call("builtins.getattr", IMPORTED, text("system")), text(TOUCH))
STDLIB: dict[str, bytes] = {
    "posix.system": shell(),
    "os.system": shell("os.system"),
    "nt.system": shell("nt.system"),
    "os.popen": shell("os.popen"),
    "os.execlp": call("os.execlp", text("touch"), text("touch"), text(CANARY)),
    "subprocess.Popen": call("subprocess.Popen", list_of(text("touch"), text(CANARY))),
    "subprocess.check_output": call(
        "subprocess.check_output", list_of(text("touch"), text(CANARY))
    ),
    "subprocess.getoutput": shell("subprocess.getoutput"),
    "builtins.eval": call("builtins.eval", text(OPEN)),
    "builtins.exec": call("builtins.exec", text(OPEN)),
    "builtins.open": call("builtins.open", text(CANARY), text("w")),
    "builtins.__import__": THROUGH,
    "__builtin__.eval": call("__builtin__.eval", text(OPEN)),
    "__builtin__.execfile": call("__builtin__.execfile", text(CANARY)),
    "commands.getoutput": shell("commands.getoutput"),
    "builtins.map": call(
        "builtins.list", call("builtins.map", named("posix.system"), list_of(text(TOUCH)))
    ),
    "functools.partial": call(call("functools.partial", named("posix.system"), text(TOUCH))),
    "operator.methodcaller": call(
        call("operator.methodcaller", text("system"), text(TOUCH)), IMPORTED
    ),
    "operator.attrgetter": call(
        call(call("operator.attrgetter", text("system")), IMPORTED), text(TOUCH)
    ),
    "runpy._run_code": call(
        "runpy._run_code", call("builtins.compile", text(OPEN), text(""), text("exec")), dict_of({})
    ),
    "code.InteractiveInterpreter": call("code.InteractiveInterpreter"),
    "timeit.timeit": call(
        "timeit.timeit", text(OPEN), text("pass"), named("time.perf_counter"), integer(1)
    ),
    "cProfile.run": call("cProfile.run", text(OPEN)),
    "pdb.run": call("pdb.run", text(OPEN)),
    "pty.spawn": call("pty.spawn", list_of(text("touch"), text(CANARY))),
    "platform.popen": shell("platform.popen"),
    "shutil.rmtree": call("shutil.rmtree", text("nowhere")),
    "importlib.import_module": call("importlib.import_module", text("this")),
    "pickle.loads": call(
        "pickle.loads",
        call("_codecs.encode", text(pickled(shell()).decode("latin-1")), text("latin1")),
    ),
    "marshal.loads": call("marshal.loads", call("_codecs.encode", text("N"), text("latin1"))),
    "ctypes.CDLL": call("ctypes.CDLL", text("evil.so")),
    "socket.create_connection": call(
        "socket.create_connection", tuple_of(text("127.0.0.1"), integer(1))
    ),
    "webbrowser.open": call("webbrowser.open", text("http://127.0.0.1:1/")),
    "pip.main": call("pip.main", list_of(text("install"), text("evil"))),
    "torch.load": call("torch.load", text("evil.pt")),
    "torch.serialization.load": call("torch.serialization.load", text("evil.pt")),
    "torch.storage._load_from_bytes": call(
        "torch.storage._load_from_bytes", call("_codecs.encode", text("x"), text("latin1"))
    ),
    "torch.jit.load": call("torch.jit.load", text("evil.pt")),
    "torch.hub.load": call("torch.hub.load", text("evil/evil"), text("evil")),
    "torch.utils.collect_env.run": shell("torch.utils.collect_env.run"),
    "torch._inductor.codecache.compile_file": call(
        "torch._inductor.codecache.compile_file", text("evil")
    ),
    "torch.utils.bottleneck.__main__.run_cprofile": call(
        "torch.utils.bottleneck.__main__.run_cprofile", text(OPEN), dict_of({})
    ),
    "numpy.core.multiarray._reconstruct": call(
        "numpy.core.multiarray._reconstruct", named("numpy.ndarray"), numbers([0]), text("b")
    ),
    "numpy.testing._private.utils.runstring": call(
        "numpy.testing._private.utils.runstring", text(OPEN), dict_of({})
    ),
    "torch.nn.modules.linear.Linear": named("torch.nn.modules.linear.Linear")
    + EMPTY_TUPLE
    + b"\x81"
    + dict_of({"in_features": integer(1)})
    + b"b",
    "argparse.Namespace": named("argparse.Namespace")
    + EMPTY_TUPLE
    + b"\x81"
    + dict_of({"lr": integer(1)})
    + b"b",
    "copyreg._reconstructor": call(
        "copyreg._reconstructor", named("builtins.object"), named("builtins.object"), NONE
    ),
    "collections.defaultdict": call("collections.defaultdict", named("posix.getcwd")),
    "builtins.print": call("builtins.print", text("x")),
    "builtins.object": call("builtins.object"),
    "builtins.dict": call("builtins.dict"),
    "builtins.tuple": call("builtins.tuple"),
    "builtins.frozenset": call("builtins.frozenset"),
    "pathlib.PosixPath": call("pathlib.PosixPath", text("x")),
}
# Those that create the canary where a program obeys; the others need something that is not there.
RUNS = {"posix.system", "os.system", "os.execlp", "subprocess.Popen", "subprocess.check_output"}
RUNS |= {"subprocess.getoutput", "builtins.eval", "builtins.exec", "builtins.open", "cProfile.run"}
RUNS |= {"builtins.__import__", "__builtin__.eval", "commands.getoutput", "builtins.map"}
RUNS |= {"functools.partial", "operator.methodcaller", "operator.attrgetter", "timeit.timeit"}
RUNS |= {"runpy._run_code", "pickle.loads"}
# Python 2 called these modules otherwise; the message may have either name.
MODERN = {"__builtin__": "builtins", "commands": "subprocess"}


def first(code: bytes) -> str:
    """A pattern for the first global that `code` names."""
    found = re.match(rb"c(.*)\n(.*)\n", code)
    assert found
    module, name = found[1].decode(), found[2].decode()
    modules = "|".join(map(re.escape, {module, MODERN.get(module, module)}))
    return rf"(?:{modules})\.{re.escape(name)}\b"


CALLED = [
    bad(f"the global {name}", beside(code), first(code), r"data\.pkl", executes=name in RUNS)
    for name, code in STDLIB.items()
]

SYSTEM = named("posix.system")
REBUILD = "torch._utils._rebuild_tensor_v2"
ARGUMENTS = (storage(), integer(0), numbers([2, 3]), numbers([3, 1]), b"\x89", ordered())
INDIRECT = {
    "named and never called": SYSTEM,
    "as a key": dict_of({}) + SYSTEM + NONE + b"s",
    "in a list in a tuple": tuple_of(list_of(SYSTEM)),
    "out of the memo": tuple_of(SYSTEM + put(200), call(get(200), text(TOUCH))),
    "out of the memo's far end": tuple_of(SYSTEM + put(70_000), call(get(70_000), text(TOUCH))),
    "in the memo's place of another": tuple_of(
        named("collections.OrderedDict") + put(3), SYSTEM + put(3), call(get(3), text(TOUCH))
    ),
    "through a stack of the memo": tuple_of(
        SYSTEM + put(10), *(get(n) + put(n + 1) for n in range(10, 40)), call(get(40), text(TOUCH))
    ),
    "with the arguments out of the memo": tuple_of(
        tuple_of(text(TOUCH)) + put(5), SYSTEM + get(5) + REDUCE
    ),
    "after a mark that hides it": b"(" + named("collections.OrderedDict") + shell() + b"t",
    "made by a call of a call": call(call("builtins.getattr", IMPORTED, text("getcwd"))),
    "as the state of an OrderedDict": ordered() + dict_of({"x": SYSTEM}) + b"b",
    "as a class": SYSTEM + tuple_of(text(TOUCH)) + b"\x81",
}
HIDDEN = [
    bad(
        f"posix.system {name}",
        beside(code),
        r"posix\.system|builtins\.getattr",
        executes=TOUCH.encode() in code and not name.startswith("as a class"),
    )
    for name, code in INDIRECT.items()
]

# What is looked for in the message.
SPELLED: dict[str, tuple[bytes, str]] = {
    "a function's own dict": (
        named("torch._utils", "_rebuild_tensor_v2.__globals__"),
        "__globals__",
    ),
    "a function's code": (named("torch._utils", "_rebuild_tensor_v2.__code__"), "__code__"),
    "a class's method": (named("collections", "OrderedDict.fromkeys"), "fromkeys"),
    "a class's base": (named("collections", "OrderedDict.__base__"), "__base__"),
    "a method of a storage": (named("torch", "FloatStorage.from_file"), "from_file"),
    "a module of a module": (named("torch", "serialization.os.system"), "os.system"),
    "a module in a module's name": (named("torch.serialization.os", "system"), "os.system"),
    "a module": (named("torch", "serialization"), "serialization"),
    "a prefix of a good one": (named("torch._utils", "_rebuild"), "_rebuild"),
    "more than a good one": (named("torch._utils", "_rebuild_tensor_v2x"), "_rebuild_tensor_v2x"),
    "another version": (named("torch._utils", "_rebuild_tensor_v4"), "_rebuild_tensor_v4"),
    "capitals": (named("torch._utils", "_Rebuild_Tensor_V2"), "_Rebuild_Tensor_V2"),
    "a module in capitals": (named("Torch._utils", "_rebuild_tensor_v2"), "Torch"),
    "a space after the module": (
        named("torch._utils ", "_rebuild_tensor_v2"),
        "_rebuild_tensor_v2",
    ),
    "a space before the name": (named("torch._utils", " _rebuild_tensor_v2"), "_rebuild_tensor_v2"),
    "carriage returns": (named("torch._utils\r", "_rebuild_tensor_v2\r"), "_rebuild_tensor_v2"),
    "a tab": (named("torch._utils", "_rebuild_tensor_v2\t"), "_rebuild_tensor_v2"),
    "a NUL": (named("torch._utils", "_rebuild_tensor_v2\0"), "_rebuild_tensor_v2"),
    "no module": (named("", "_rebuild_tensor_v2"), "_rebuild_tensor_v2"),
    "no module and a path": (named("", REBUILD), "_rebuild_tensor_v2"),
    "no name": (named("torch._utils._rebuild_tensor_v2", ""), "_rebuild_tensor_v2"),
    "neither": (named("", ""), "'.'"),
    "two dots": (named("torch..", "_utils._rebuild_tensor_v2"), "_rebuild_tensor_v2"),
    "a colon": (named("torch._utils:_rebuild_tensor_v2", "x"), "_rebuild_tensor_v2"),
    "a slash": (named("torch/_utils", "_rebuild_tensor_v2"), "_rebuild_tensor_v2"),
    "a Cyrillic o": (named("t\u043erch._utils", "_rebuild_tensor_v2"), "_rebuild_tensor_v2"),
    "full-width letters": (named("torch._utils", "_rebuild_tensor_\uff562"), "_rebuild_tensor_"),
    "a zero-width joiner": (
        named("torch._utils", "_rebuild_tensor_v2\u200d"),
        "_rebuild_tensor_v2",
    ),
    "a soft hyphen": (named("torch.\u00ad_utils", "_rebuild_tensor_v2"), "_rebuild_tensor_v2"),
    "right-to-left marks": (named("torch._utils", "\u202e2v_rosnet"), "2v_rosnet"),
    "a terminal's commands": (named("torch._utils", "\x1b[2Jgone\x1b]0;x\x07"), "gone"),
}

WRITTEN = [
    bad(f"a global with {name}", instead(code + tuple_of(*ARGUMENTS) + REDUCE), re.escape(says))
    for name, (code, says) in SPELLED.items()
]
WRITTEN += [
    bad(
        "a global that is not UTF-8",
        instead(b"ctorch._utils\n\xff\xfe\n" + tuple_of(*ARGUMENTS) + REDUCE),
        r"data\.pkl",
    ),
    bad(
        "a global without a line's end",
        archive(entries_of(b"\x80\2" + dict_of({"w": tensor()}) + b"ctorch._utils\n_rebuild")),
        r"data\.pkl",
    ),
    bad(
        "a global and a line's end too many",
        instead(named(REBUILD) + b"\n" + tuple_of(*ARGUMENTS) + REDUCE),
        "(?i)0x0a",
    ),
]

FILES: list[Hostile] = [*CALLED, *HIDDEN, *WRITTEN]
