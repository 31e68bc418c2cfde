"""Schemathesis over the OpenAPI document, against the running API, with both credentials."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet.registry import Registry
from fleet.settings import Settings

PROGRAM = Path(sys.executable).with_name("schemathesis")

# Left out: the document cannot say all that is checked (reserved names, keys whose blob is what
# they say), so a body that fits it may be refused all the same.
CONFIG = """\
[checks]
positive_data_acceptance.enabled = false
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 409, 413, 422]

[parameters]
{parameters}
"""


@pytest.fixture
def one_machine(serve_api, registry: Registry, settings: Settings) -> tuple[Any, dict[str, str]]:
    """An API on each database with a machine that called home: its token, id and job's id."""
    api = serve_api(registry, settings)
    enrolled = api.add("node-3")
    accepted = api.call_home(enrolled["token"], api.report("node-3")).json()
    return api, {"token": enrolled["token"], "job_id": accepted["job_id"]}


def _run(folder: Path, url: str, secret: str, parameters: dict[str, str], *options: str) -> str:
    lines = "\n".join(f'"path.{name}" = "{value}"' for name, value in parameters.items())
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG.format(parameters=lines), encoding="utf-8")
    done = subprocess.run(
        [
            str(PROGRAM), "--config-file", str(config), "run", f"{url}/openapi.json",
            "--header", f"Authorization: Bearer {secret}", "--max-examples", "15",
            "--seed", "1", "--no-color", "--continue-on-failure",
            # Ready only while Prefect answers, which does not run here: 503 is its true answer.
            "--exclude-path", "/readyz", *options,
        ],
        cwd=folder, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout[-8000:] + done.stderr[-2000:]


def test_the_api_keeps_to_its_document_for_operators(one_machine, tmp_path: Path) -> None:
    """With an operator's key no request breaks the document, and none ends in a 5xx."""
    api, _ = one_machine
    assert "" == _run(tmp_path, api.url, "an-operators-key", {}, "--phases",
                      "examples,coverage,fuzzing,stateful")  # fmt: skip


def test_the_api_keeps_to_its_document_for_a_known_machine(one_machine, tmp_path: Path) -> None:
    """Asked about a machine and a job that exist, the API keeps to its document as well."""
    api, known = one_machine
    parameters = {"job_id": known["job_id"], "machine": "node-3"}
    assert "" == _run(tmp_path, api.url, "an-operators-key", parameters, "--phases",
                      "examples,coverage,fuzzing")  # fmt: skip


def test_the_api_keeps_to_its_document_for_machines(one_machine, tmp_path: Path) -> None:
    """With a machine's token calls home and looks at its own job keep to the document."""
    api, known = one_machine
    failures = _run(
        tmp_path, api.url, known["token"], {"job_id": known["job_id"]},
        "--include-path", "/api/v1/call-home", "--include-path", "/api/v1/jobs/{job_id}",
        "--phases", "examples,coverage,fuzzing",
    )  # fmt: skip
    assert "" == failures
    assert 202 == api.call_home(known["token"], api.report("node-3")).status_code
