"""`python -m tokenprune.testing.golden DIR`: one line per file; exit 0 if all agree, 4 if not, 2 for a wrong call."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokenprune.errors import ExitCode, PrerequisiteError
from tokenprune.testing.golden.folder import check_folder


def main(arguments: list[str] | None = None) -> int:
    """Check a folder.

    Args:
        arguments: The command line without the program's name; `None` reads the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m tokenprune.testing.golden", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds <method>/<case>.safetensors")
    folder = parser.parse_args(arguments).folder
    passed = total = 0
    try:
        for verdict in check_folder(folder):
            sys.stdout.write(verdict.line() + "\n")
            sys.stdout.flush()
            passed, total = passed + verdict.passed, total + 1
    except PrerequisiteError as error:
        sys.stderr.write(f"error: {error.message} ({error.hint})\n")
        return ExitCode.USAGE
    sys.stdout.write(f"{passed} of {total} files agree\n")
    return ExitCode.OK if passed == total else ExitCode.VERDICT


if __name__ == "__main__":
    sys.exit(main())
