"""Tell the Prefect server of pool, deployments and automation: `python -m flows.deploy`.

Running it again changes nothing that is as it should be.
"""

import os
import sys

from fleet.errors import SetupFailed
from fleet.prefect_environment import prefect_environment
from fleet.settings import load_settings


def main() -> int:
    """Deploy all; the exit status. The server must be up."""
    settings = load_settings()
    os.environ.update(prefect_environment(settings))
    # Prefect reads its variables when it is first imported.
    import httpx  # noqa: PLC0415

    from flows import deployments  # noqa: PLC0415

    try:
        deployments.ensure_work_pool(settings)
        deployments.deploy(settings)
        deployments.ensure_automation()
    except httpx.HTTPError as error:
        print(  # noqa: T201
            f"The Prefect server at {settings.prefect_url} did not take the deployments: "
            f"{type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return 1
    except SetupFailed as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
