"""What a user may write: every public name of recast, for mypy and pyright at their strictest."""

import ml_dtypes
import numpy as np
import recast
import torch


def convert(rank: int) -> recast.Report:
    plan: recast.Plan = recast.plan("model", to="bf16", keep=["lm_head.*"], auto_keep=False)
    casts = [tensor.name for tensor in plan.tensors if tensor.action == "cast"]
    sizes = {file.path: file.bytes for file in plan.files}
    print(plan.source, plan.to.upper(), len(casts), sum(sizes.values()), plan.warnings)
    report = recast.convert(
        "model",
        "model-bf16",
        to=torch.bfloat16,
        keep=("lm_head.*", r"re:\.norm"),
        on_overflow="saturate",
        verify=torch.device("cuda", rank),
        threads=4,
        io="mmap",
        sync=False,
        overwrite=True,
        sha256=True,
        progress=lambda done, total: print(done / total),
    )
    print(report, report.tensors["cast"], report.audit["to_inf"], report.gpu_memory["reserved"])
    for group in report.kept:
        print(group["reason"], group["tensors"][0])
    if (found := report.verification) is not None and not found["passed"]:
        wrong = [(mismatch["tensor"], mismatch["count"] + 1) for mismatch in found["mismatches"]]
        said = [problem["message"].upper() for problem in found["problems"]]
        print(wrong, said, found["memory"] and found["memory"]["reserved"]["measured"])
    print(max(audit["max_abs"] for audit in report.tensor_audits), report.to_json())
    return report


def look(report: recast.Report) -> bool:
    found: recast.Inspection = recast.inspect(report.dest)
    print(found.parameters, found.gpu_memory["as_stored"], found.to_json(tensor_list=True))
    checked: recast.Verification = recast.verify(
        "model", report.dest, device="cuda:1", samples=8, loader="transformers", seed=1
    )
    print(checked.values_checked, checked.problems, checked.to_json())
    return checked.passed


def cast() -> None:
    array = recast.cast(np.zeros(3, np.float32), ml_dtypes.bfloat16, on_overflow="error")
    tensor = recast.cast(torch.zeros(3), "fp16", out=torch.empty(3, dtype=torch.float16))
    print(array.shape, tensor.device, recast.plan("model", to=np.dtype("float16")).parameters)


def rows(name: str, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    return (slice(0, shape[0] // 2),) if len(shape) == 2 else None


def load(module: torch.nn.Module) -> int:
    weights = recast.load("model.bin", "bf16", device="cuda", key="ema", sharding=rows)
    for name, tensor in recast.tensors("model", to=torch.float16, on_overflow="inf", threads=2):
        print(name, tensor.shape)
    found = recast.load_into(module, "model", "as-stored")
    return len(weights) + len(found.missing) + len(found.unexpected)


def run() -> int:
    try:
        return load(torch.nn.Linear(2, 3)) if look(convert(0)) else 1
    except (recast.HeaderError, recast.PickleError, recast.QuantizedError) as error:
        print(recast.__version__, error.message)
    except recast.IndexFileError as error:
        print(recast.__version__, error.message)
    except (recast.CastOverflowError, recast.VerificationError) as error:
        print(error.hint or "")
    except (recast.UsageError, recast.InputError, recast.OutputError) as error:
        return error.exit_code
    except (recast.StorageError, recast.CheckError):
        raise
    except recast.RecastError as error:
        print(error)
    return 1
