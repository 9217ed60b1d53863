"""The command line: `cuao3d demo | check | fuse | distill | evaluate | query | compare | import | weights`."""

import sys
from typing import Any

import tyro
from rich.console import Console

from cuao3d.cli.check import check
from cuao3d.cli.compare import compare
from cuao3d.cli.demo import demo
from cuao3d.cli.distill import distill
from cuao3d.cli.evaluate import evaluate
from cuao3d.cli.fuse import fuse
from cuao3d.cli.query import query
from cuao3d.cli.takeover import import_official
from cuao3d.cli.weights import weights

COMMANDS: dict[str, Any] = {
    "demo": demo,
    "check": check,
    "fuse": fuse,
    "distill": distill,
    "evaluate": evaluate,
    "query": query,
    "compare": compare,
    "import": import_official,
    "weights": weights,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code. Mistakes of the user are one line on standard error and exit code 2."""
    try:
        code: int = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="cuao3d", description=__doc__, args=arguments, use_underscores=False
        )
    except (ValueError, FileNotFoundError, ImportError, OSError) as error:
        Console(stderr=True).print(f"[red]error[/] {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        print("Stopped; what was finished is kept, and the same command goes on from there.", file=sys.stderr)
        return 130
    return code
