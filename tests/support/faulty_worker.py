"""The real capture worker with a fault: once it reads TRIGGER from the tap it loops or allocates without end, as
``WARMTAP_FAULT`` says. A worker has no fault once the file ``WARMTAP_FAULT_DONE`` is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from capture import worker
from capture.pipeline import Pipeline

TRIGGER = b"/trigger-the-fault"


class FaultyPipeline(Pipeline):
    """See above."""

    def feed(self, frames: Any) -> None:
        frames = list(frames)
        done = Path(os.environ["WARMTAP_FAULT_DONE"])
        if any(TRIGGER in frame[3] for frame in frames) and not done.exists():
            done.touch()
            if os.environ["WARMTAP_FAULT"] == "loop":
                while True:
                    pass
            held = []
            while True:
                held.append(bytearray(16 << 20))
        super().feed(frames)


if __name__ == "__main__":
    worker.Pipeline = FaultyPipeline  # type: ignore[misc]
    sys.exit(worker.main())
