"""``make fuzz``: a target under atheris (libFuzzer, coverage-guided), for so many seconds.

``python -m tests.fuzz TARGET --seconds N [--corpus DIR]``, with an interpreter that has atheris. What breaks a target
is left as a file in ``fuzz-out/TARGET/``; mend it, and keep the file as ``tests/vectors/fuzz/TARGET/NAME``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["capture"]):
    from tests.fuzz.targets import TARGETS, seeds


def main() -> None:
    """Exits with libFuzzer's status: 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    options = parser.parse_args()
    home = options.out / options.target
    corpus, begin = home / "corpus", home / "seeds"
    for directory in (corpus, begin):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(options.target)):
        (begin / f"{number:04}").write_bytes(seed)
    arguments = [
        sys.argv[0],
        str(corpus),
        str(begin),
        f"-artifact_prefix={home}/",
        f"-max_total_time={options.seconds}",
        # Bytes. A flow of several exchanges fits; seconds for one input: a quadratic reader is a finding as well.
        "-max_len=8192",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
