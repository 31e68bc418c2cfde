"""Trying again what waiting can cure, and nothing else."""

import logging
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from fleet.errors import PackagesLocked, Unreachable
from fleet.settings import Settings

TRANSIENT = (Unreachable, PackagesLocked)
LONGEST_DELAY = 300.0

Log = logging.Logger | logging.LoggerAdapter[Any]


def patiently(settings: Settings, log: Log) -> Retrying:
    """Call again after Unreachable or PackagesLocked, `settings.transient_retries` times at most.

    The waits double from `settings.transient_retry_delay` seconds on, and each is logged. The last
    error is raised as it is.
    """
    return Retrying(
        retry=retry_if_exception_type(TRANSIENT),
        stop=stop_after_attempt(settings.transient_retries + 1),
        wait=wait_exponential(multiplier=settings.transient_retry_delay, max=LONGEST_DELAY),
        before_sleep=lambda state: _tell(state, settings.transient_retries, log),
        reraise=True,
    )


def _tell(state: RetryCallState, retries: int, log: Log) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    log.warning(
        "%s Automatic retry %d of %d in %.0f s.", error, state.attempt_number, retries, wait
    )
