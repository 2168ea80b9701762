"""The account and region that the emulator keeps per request, for threads that serve no request."""

from __future__ import annotations

from dataclasses import dataclass

from local_cloud.hooks import Module


@dataclass(frozen=True)
class Scope:
    account: str
    region: str

    def enter(self) -> None:
        """Make the emulator's stores, as seen from this thread, those of this account and region."""
        responses = Module("ministack.core.responses")
        responses.get("set_request_account_id")(self.account)
        responses.get("set_request_region")(self.region)

    @classmethod
    def current(cls) -> Scope:
        responses = Module("ministack.core.responses")
        return cls(responses.get("get_account_id")(), responses.get("get_region")())
