"""Machines that call home: tokens, bodies, and a light HTTP client for many at once."""

import asyncio
import base64
import json
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from bench.plane import Plane
from fleet import enrolment, machines

REQUEST_SECONDS = 60


@dataclass(frozen=True)
class Caller:
    """A machine about to call home; `source` is its own loopback address."""

    name: str
    token: str
    source: str
    boot_id: str

    def request(self) -> bytes:
        key = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + self.name.encode().ljust(32, b".")
        body = json.dumps(
            {
                "hostname": self.name,
                "boot_id": self.boot_id,
                "mac": "52:54:00:12:34:56",
                "ssh_host_keys": [f"ssh-ed25519 {base64.b64encode(key).decode()}"],
                "hardware": {
                    "cpu_model": "Intel(R) Core(TM)2 Duo CPU E8400 @ 3.00GHz",
                    "x86_64_level": 1,
                    "cores": 2,
                    "memory_bytes": 4_294_967_296,
                    "disks": [{"name": "sda", "serial": "WD-WCAV5000", "size_bytes": 5 * 10**11}],
                    "nics": [{"name": "enp0s25", "mac": "52:54:00:12:34:56"}],
                },
            }
        ).encode()
        head = (
            "POST /api/v1/call-home HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True)
class Answer:
    status: int
    seconds: float


def enrol(plane: Plane, prefix: str, count: int) -> list[Caller]:
    """`count` machines added to the registry, each with a source address of its own."""
    callers = []
    now = datetime.now(UTC)
    with plane.registry.write() as session:
        for number in range(count):
            machine = machines.add(session, f"{prefix}-{number}", now=now)
            token = enrolment.mint(session, machine, now=now, life=86_400)
            source = f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"
            callers.append(Caller(machine.name, token, source, str(uuid.uuid4())))
    return callers


async def call_home(caller: Caller, port: int) -> Answer:
    """One call over a connection of its own, as a machine makes it; times connecting too."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(caller.source, 0))
    try:
        writer.write(caller.request())
        answer = await asyncio.wait_for(reader.read(), REQUEST_SECONDS)
    finally:
        writer.close()
    return Answer(int(answer[9:12] or 0), time.perf_counter() - began)


async def burst(callers: list[Caller], port: int, at_once: int) -> tuple[list[Answer], float]:
    """All callers, at most `at_once` at a time; their answers and the whole duration."""
    gate = asyncio.Semaphore(at_once)

    async def one(caller: Caller) -> Answer:
        async with gate:
            return await call_home(caller, port)

    began = time.perf_counter()
    answers = await asyncio.gather(*map(one, callers))
    return list(answers), time.perf_counter() - began
