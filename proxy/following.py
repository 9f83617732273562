"""``follow_upstream``: clients are refused while the model server refuses, as if they had asked it themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

from proxy import control as said
from proxy.keeping import Orders
from proxy.listening import Listening
from proxy.relay_keeper import RelayKeeper
from proxy.upstream_watch import Probe

log = logging.getLogger("supervisor")

#: Seconds between two looks at a model server that is followed.
FOLLOW_INTERVAL: Final = 1.0


class Following:
    """Closes and opens listeners. Which are closed stands in ``orders.refused``."""

    def __init__(
        self,
        followed: Sequence[int],
        *,
        listening: Sequence[Listening],
        probes: Mapping[int, Probe],
        orders: Orders,
        relays: Sequence[RelayKeeper],
    ) -> None:
        """``followed``: the places of the listeners that follow; ``probes`` by place, of those at least."""
        self._followed = followed
        self._listening = listening
        self._probes = probes
        self._orders = orders
        self._relays = relays

    async def run(self) -> None:
        """Look at each model server. Never ends."""
        while self._followed:
            for number in self._followed:
                failure = await self._probes[number].failure()
                if failure and self._probes[number].silent:
                    continue  # it may be busy: no reason to refuse, and none to accept again
                if failure and number not in self._orders.refused:
                    self._refuse(number, failure)
                elif not failure and number in self._orders.refused:
                    self.accept(number)
            await asyncio.sleep(FOLLOW_INTERVAL)
        await asyncio.Event().wait()

    def _refuse(self, number: int, failure: str) -> None:
        """Tell the relays; the kernel follows when none accepts any more."""
        self._orders.refused.add(number)
        fields = {"listener": self._listening[number].name, "model_server": self._probes[number].address}
        log.warning("refusing clients while the model server refuses", extra={"fields": {**fields, "error": failure}})
        for relay in self._relays:
            relay.say(said.numbered(said.REFUSE, number))

    def settle(self) -> None:
        """A relay that starts listens for a moment, and undoes the refusal of the kernel: it is renewed."""
        for number in self._orders.refused:
            if all(number in relay.refusing for relay in self._relays if relay.accepting):
                self._listening[number].refuse()

    def accept(self, number: int) -> None:
        """Accept on a listener again."""
        try:
            self._listening[number].accept()
        except OSError as error:
            fields = {"listener": self._listening[number].name, "error": error}
            log.error("cannot listen again", extra={"fields": fields})
            return
        self._orders.refused.discard(number)
        for relay in self._relays:
            relay.refusing.discard(number)
            relay.say(said.numbered(said.ACCEPT, number))
        log.info("accepting clients again", extra={"fields": {"listener": self._listening[number].name}})
