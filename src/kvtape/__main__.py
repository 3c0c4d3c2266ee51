"""Run the command line: python -m kvtape, or the script kvtape."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from kvtape.errors import INTERRUPTED, Error
from kvtape.garbage import collect_seldom


def main() -> NoReturn:
    """Run a verb. What we can explain is one line; what we cannot is a bug."""
    if sys.stderr is None:
        # It was closed (2>&-): whoever does that wants to hear nothing.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 until the end
    collect_seldom()
    # Behind that, as the modules are many objects, too.
    from kvtape.cli.app import app

    try:
        app()
    except Error as error:
        sys.stderr.write(f"kvtape: {error}\n")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.stderr.write("kvtape: interrupted\n")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough of it.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)


if __name__ == "__main__":
    main()
