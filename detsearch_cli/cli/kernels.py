"""Build the compiled operators ahead, or see what is active."""

from __future__ import annotations

from typing import Annotated

import typer

from detsearch_cli.cli.groups import Group

app = typer.Typer(name="kernels", cls=Group, no_args_is_help=True, help=__doc__)


@app.command("build")
def build(
    cuda_arch: Annotated[
        list[str] | None,
        typer.Option(help="CUDA architecture such as 9.0; repeat. Default: the visible GPUs'."),
    ] = None,
) -> None:
    """Compile the operators now: for the CPU, and for GPUs where nvcc is found. Compiled ones are kept."""
    from detsearch_kernels import build as tools

    from detsearch_cli.cli import console
    from detsearch_cli.errors import KernelError

    try:
        console.say(f"cpu: {tools.build(tools.cpu_library(), console.say)}")
        if cuda_arch or tools.visible_architectures():
            console.say(f"cuda: {tools.build(tools.cuda_library(cuda_arch or ()), console.say)}")
    except tools.BuildError as error:
        raise KernelError(f"the kernels cannot be built: {error}") from error


@app.command("info")
def info(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show which operators are compiled, device by device. Missing ones are built first."""
    from dataclasses import asdict

    import detsearch_kernels as kernels

    from detsearch_cli.cli import console

    found = kernels.info()
    if json:
        console.emit_json([asdict(status) for status in found])
        return
    rows = [[s.kind, "compiled" if s.library else "PyTorch", s.library or s.reason or ""] for s in found]
    console.table("kernels", ["device", "operators", "library, or why there is none"], rows)
