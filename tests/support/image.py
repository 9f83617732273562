"""config/docker/Dockerfile: its stages, and its images built by hand where no engine is.

``python -m tests.support.image TARGET DIRECTORY`` runs what the target's stages run of ``python``, in fresh virtual
environments below DIRECTORY, each absolute path of the Dockerfile below it too; what only a container can do (users,
apt-get) is left out. Prints where the image's interpreter is.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final, NamedTuple

from tests.test_architecture import ROOT

DOCKERFILE: Final = ROOT / "config" / "docker" / "Dockerfile"


class Stage(NamedTuple):
    """What one stage begins with, and its instructions, continuation lines joined."""

    base: str
    lines: list[str]


def stages() -> dict[str, Stage]:
    """By name."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if begin := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[begin[2]] = Stage(begin[1], [])
        else:
            found[list(found)[-1]].lines.append(line)
    return found


def history(target: str) -> list[str]:
    """All instructions that an image consists of, the bases' first."""
    found = stages()
    stage = found.get(target)
    return [] if stage is None else [*history(stage.base), *stage.lines]


def _everything(target: str) -> list[str]:
    """The stages that have to be built for it, in order."""
    found = stages()
    needed = {target}
    for name in reversed(found):
        if name in needed:
            copied = (re.match(r"COPY --from=(\S+)", line) for line in found[name].lines)
            needed |= {found[name].base, *(one[1] for one in copied if one)}
    return [name for name in found if name in needed]


def build(target: str, root: Path) -> Path:
    """The image's interpreter. Raises CalledProcessError."""
    venv.create(root / "tools", with_pip=True)
    python = str(root / "tools" / "bin" / "python")

    def below(word: str) -> str:
        return f"{root}{word}" if word.startswith("/") else word

    for line in (line for name in _everything(target) for line in stages()[name].lines):
        instruction, _, rest = line.partition(" ")
        words = shlex.split(rest)
        if instruction == "RUN" and words[0] == "python":
            print("+", rest, file=sys.stderr)
            subprocess.run([python, *map(below, words[1:])], check=True, stdout=sys.stderr)
        elif instruction == "COPY" and not words[0].startswith("--from="):
            *sources, destination = words
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, below(destination), ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    Path(below(destination)).mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, below(destination))
        elif instruction == "COPY":
            assert words[1] == words[2], "stages share one tree here: a copy must keep its place"
    image = root / "opt" / "warmtap" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "--python", str(image), "check"], check=True, stdout=sys.stderr)
    return image


if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2]).absolute()))
