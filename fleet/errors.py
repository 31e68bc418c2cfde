"""Errors for the operator: what happened, which machine, what to do next.

MusterError
├── InvalidRequest
│   └── InvalidName
├── NameTaken
├── UnknownMachine, UnknownJob
├── IllegalTransition
├── TokenUnknown
├── TokenRefused
│   ├── TokenExpired, TokenRevoked, TokenSpent
├── HostKeysChanged
├── ConfigurationFailed
│   ├── PlaybookFailed
│   ├── Unreachable, PackagesLocked      (waiting can cure these)
│   └── VerificationFailed
├── RunCancelled
├── DeadlineExceeded
└── SetupFailed
"""

from typing import ClassVar


class MusterError(Exception):
    """A failure with words for the operator.

    `slug` names the kind of failure in problem documents; `detail` says what happened and to
    which machine; `remedy` says what to do next.
    """

    slug: ClassVar[str] = "error"
    title: ClassVar[str] = "Muster could not do this"

    def __init__(self, detail: str, *, remedy: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.detail} {self.remedy}".rstrip()


class InvalidRequest(MusterError):
    slug = "invalid-request"
    title = "The request does not fit"


class InvalidName(InvalidRequest):
    slug = "invalid-name"
    title = "This is no name for a machine"


class NameTaken(MusterError):
    slug = "name-taken"
    title = "A machine of this name exists"


class UnknownMachine(MusterError):
    slug = "unknown-machine"
    title = "No such machine"


class UnknownJob(MusterError):
    slug = "unknown-job"
    title = "No such job"


class IllegalTransition(MusterError):
    slug = "illegal-transition"
    title = "The state does not allow this"


class TokenUnknown(MusterError):
    slug = "token-unknown"
    title = "A valid token is needed"


class TokenRefused(MusterError):
    slug = "token-refused"
    title = "This token is no longer accepted"


class TokenExpired(TokenRefused):
    slug = "token-expired"
    title = "This token has expired"


class TokenRevoked(TokenRefused):
    slug = "token-revoked"
    title = "This token was revoked"


class TokenSpent(TokenRefused):
    slug = "token-spent"
    title = "This token has done its work"


class HostKeysChanged(MusterError):
    slug = "host-keys-changed"
    title = "The SSH host keys are not those of the first call"


class ConfigurationFailed(MusterError):
    slug = "configuration-failed"
    title = "The machine could not be configured"


class PlaybookFailed(ConfigurationFailed):
    slug = "playbook-failed"
    title = "The playbook failed"


class Unreachable(ConfigurationFailed):
    slug = "unreachable"
    title = "The machine did not answer over SSH"


class PackagesLocked(ConfigurationFailed):
    slug = "packages-locked"
    title = "Another program holds the package database"


class VerificationFailed(ConfigurationFailed):
    slug = "verification-failed"
    title = "The machine is not as the playbook should leave it"


class RunCancelled(MusterError):
    slug = "run-cancelled"
    title = "The run was cancelled"


class DeadlineExceeded(MusterError):
    slug = "deadline-exceeded"
    title = "The wait was too long"


class SetupFailed(MusterError):
    slug = "setup-failed"
    title = "Muster could not be set up here"
