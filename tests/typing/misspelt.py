"""Options and a field that do not exist, each an error to a type checker."""

import recast

recast.convert("model", "out", to="bf61")
recast.convert("model", "out", to="bf16", on_overflow="saturat")
recast.convert("model", "out", to="bf16", io="mmapp")
recast.convert("model", "out", to="bf16", verify="gpu")
recast.verify("model", "out", loader="transformer")

if (found := recast.convert("model", "out", to="bf16", verify="cpu").verification) is not None:
    print(found["passes"])
