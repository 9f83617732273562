"""The child of a workbench: executors in a process, maybe an interpreter, of their own.

Started as ``python -m replay.workbench_child``, with messages (see ``replay/frames.py``) on standard input and answers
on standard output. It needs the standard library and TensorFlow, and nothing that is installed with warmtap: the
environment has the server's TensorFlow, with whatever versions of other packages that one wants.

Each message has an ``id`` and an ``op``: ``open`` (an executor, whose number is the id), ``run``, ``counter``,
``close``. Runs overlap, each in a thread of its own; all else is answered in order.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from replay import frames
from replay.executor.api import Executor, ExecutorError
from replay.executor.session import open_executor
from replay.tf_protos import TensorFlowMissing

_Answer = tuple[dict[str, Any], tuple[bytes, ...]]


class Child:
    """Answers messages until there are no more."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests = requests
        self._answers = answers
        self._writing = threading.Lock()
        self._executors: dict[int, Executor] = {}

    def serve(self) -> None:
        """Until the input ends."""
        runs: list[threading.Thread] = []
        while (message := frames.read(self._requests)) is not None:
            head, blobs = message
            operation: Callable[[dict[str, Any], list[bytes]], _Answer] = getattr(self, f"_{head['op']}")
            if head["op"] == "run":
                runs = [run for run in runs if run.is_alive()]
                runs.append(threading.Thread(target=self._answer, args=(operation, head, blobs)))
                runs[-1].start()
            else:
                self._answer(operation, head, blobs)
        for run in runs:
            run.join()
        for executor in self._executors.values():
            executor.close()

    def _answer(
        self, operation: Callable[[dict[str, Any], list[bytes]], _Answer], head: dict[str, Any], blobs: list[bytes]
    ) -> None:
        try:
            answer, found = operation(head, blobs)
        except (ExecutorError, TensorFlowMissing) as error:
            answer, found = {"error": str(error)}, ()
        with self._writing:
            frames.write(self._answers, {"id": head["id"], **answer}, found)

    def _open(self, head: dict[str, Any], _: list[bytes]) -> _Answer:
        executor = open_executor(head["directory"], level=head["level"], libraries=head["libraries"])
        self._executors[head["id"]] = executor
        names = sorted(executor.signature_defs)
        told = {
            "level": executor.level,
            "note": executor.note,
            "tensorflow": executor.tensorflow_version,
            "load_seconds": executor.load_seconds,
            "signatures": names,
        }
        return told, tuple(executor.signature_defs[name].serialized for name in names)

    def _run(self, head: dict[str, Any], blobs: list[bytes]) -> _Answer:
        feeds = list(zip(head["feeds"], blobs, strict=True))
        done = self._executors[head["executor"]].run(feeds, head["fetches"], values=head["values"])
        told = {"code": done.code, "message": done.message, "seconds": done.seconds, "bad_feed": done.bad_feed}
        return told, done.outputs

    def _counter(self, head: dict[str, Any], _: list[bytes]) -> _Answer:
        return {"value": self._executors[head["executor"]].counter(head["name"])}, ()

    def _builds(self, head: dict[str, Any], _: list[bytes]) -> _Answer:
        return {"value": self._executors[head["executor"]].builds()}, ()

    def _close(self, head: dict[str, Any], _: list[bytes]) -> _Answer:
        self._executors.pop(head["executor"]).close()
        return {}, ()


def main() -> None:
    # Ctrl-C reaches the parent too, which says what there is to say; a parent that is gone wants no answer.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # TensorFlow writes to standard output as it likes: the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    Child(sys.stdin.buffer, answers).serve()


if __name__ == "__main__":
    main()
