"""Machines that call home by way of the network, as small as a caller can be."""

import http.client
import json
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from fleet.errors import SetupFailed
from fleet.namespaces import connect
from fleet.settings import Settings
from lab.addresses import lab_names, lab_subnet

_ACCEPTED = 202
_TIMEOUT = 10.0
_PAUSE_SECONDS = 0.3


@dataclass(frozen=True)
class Caller:
    """A machine's side: it calls from inside `netns`, whose address becomes the machine's.

    Every caller is another boot; its calls are all of that boot.
    """

    settings: Settings
    name: str
    token: str
    host_keys: Sequence[str]
    netns: str
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def call(self) -> str | None:
        """Call once: the job's id if the API accepted, None if it did not answer.

        Raises AssertionError for any other answer.
        """
        gateway, port = lab_subnet(self.settings).gateway, self.settings.api_port
        body = {
            "hostname": self.name,
            "boot_id": self.boot_id,
            "ssh_host_keys": list(self.host_keys),
        }
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(gateway, port)
        try:
            connection.sock = connect(self.netns, gateway, port, timeout=_TIMEOUT)
            connection.request("POST", "/api/v1/call-home", json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, SetupFailed, http.client.HTTPException):
            return None
        finally:
            connection.close()
        assert _ACCEPTED == answer.status, f"{self.name}: {answer.status} {content!r}"
        return json.loads(content)["job_id"]


class Persistent:
    """A caller in a thread of its own that calls until it is answered, as a machine does."""

    def __init__(self, caller: Caller, timeout: float) -> None:
        self.job_id: str | None = None
        self.unanswered = 0
        self._caller = caller
        self._timeout = timeout
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=caller.name, daemon=True)
        self._thread.start()

    def wait(self) -> str:
        """The id of the job that the API answered with. Raises what the caller raised."""
        self._thread.join(self._timeout + _TIMEOUT)
        if self._failure is not None:
            raise self._failure
        assert self.job_id is not None, f"{self._caller.name} was not answered in {self._timeout} s"
        return self.job_id

    def _run(self) -> None:
        deadline = time.monotonic() + self._timeout
        try:
            while self.job_id is None and time.monotonic() < deadline:
                self.job_id = self._caller.call()
                if self.job_id is None:
                    self.unanswered += 1
                    time.sleep(_PAUSE_SECONDS)
        except BaseException as failure:
            self._failure = failure


def gateway_netns(settings: Settings) -> str:
    """The namespace in which no machine lives: who calls from there cannot be reached by ssh."""
    return lab_names(settings.home).netns
