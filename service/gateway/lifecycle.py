"""From serving to the end of a gateway: the server moves on, admission and answers ask where it is."""

import enum


class Phase(enum.Enum):
    """Where a gateway is in its life."""

    SERVING = "serving"
    DRAINING = "draining"
    """New requests are refused; those that were accepted go on."""
    LEAVING = "leaving"
    """Clients are cut off; another gateway may go on with their requests, so none is cancelled."""


class Lifecycle:
    """The phase of one gateway; it only moves forward."""

    def __init__(self) -> None:
        self.phase = Phase.SERVING

    def drain(self) -> None:
        """Refuse new requests from now on."""
        if self.phase is Phase.SERVING:
            self.phase = Phase.DRAINING

    def leave(self) -> None:
        """Leave what is unfinished to other gateways from now on."""
        self.phase = Phase.LEAVING
