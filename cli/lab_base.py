"""`python -m cli.lab_base`: builds the laboratory's base in a process of its own.

`up` starts it beside Prefect's server and can end it as it ends all its processes.
"""

import sys

from fleet.errors import MusterError
from fleet.settings import load_settings
from lab.image import ensure_base


def main() -> int:
    """Print each step to standard output, and why it failed if it did."""
    try:
        ensure_base(load_settings(), progress=lambda step: print(step, flush=True))  # noqa: T201
    except MusterError as error:
        print(error)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
