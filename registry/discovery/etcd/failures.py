"""What goes wrong between an etcd and whoever asks it."""

from __future__ import annotations

from registry.core.text import shown
from registry.discovery.etcd.messages import GatewayError

UNKNOWN, INVALID_ARGUMENT, DEADLINE, NOT_FOUND = 2, 3, 4, 5
PERMISSION_DENIED, EXHAUSTED, FAILED_PRECONDITION, OUT_OF_RANGE = 7, 8, 9, 11
INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 13, 14, 16

_OF_THE_ENDPOINT = {UNKNOWN, DEADLINE, INTERNAL, UNAVAILABLE}
_ABOUT_TOKEN = ("user name is empty", "revision of auth store is old", "invalid auth token")


class EndpointFailed(Exception):
    """An endpoint gave no answer. Another one may, or this one over another connection."""


class NotAnEtcd(EndpointFailed):
    """What answers at an endpoint is none, and will be none when it is asked again."""


class TooMuchAnswered(Exception):
    """An answer has more bytes than were asked for."""


class EtcdRefusal(Exception):
    """An etcd answered that it does not do what was asked."""

    def __init__(self, error: GatewayError) -> None:
        self.grpc_code = error.code or error.grpc_code
        self.message = error.message
        super().__init__(f"it answers {shown(self.message)}")

    @property
    def is_of_the_endpoint(self) -> bool:
        """Whether another endpoint may do it: this one has no leader, or is going down."""
        return self.grpc_code in _OF_THE_ENDPOINT and not self.is_about_token

    @property
    def is_about_token(self) -> bool:
        """Whether a new token may help. Which number an expired one gets depends on the version
        and the call."""
        return self.grpc_code in (UNAUTHENTICATED, PERMISSION_DENIED) or self.says(*_ABOUT_TOKEN)

    def says(self, *parts: str) -> bool:
        """Whether the message has one of these in it."""
        return any(part in self.message for part in parts)

    @property
    def hint(self) -> str:
        """What to do about it."""
        if self.says("user name is empty"):
            return "It asks for a user: set ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD."
        if self.grpc_code == PERMISSION_DENIED:
            return "Give the user a role that may read and write below the prefix."
        if self.grpc_code == UNAUTHENTICATED or self.says("authentication failed"):
            return "Check user and password."
        if self.says("space exceeded"):
            return "Make room in it: compact, defragment, then disarm its alarm."
        return "See the log of etcd."
