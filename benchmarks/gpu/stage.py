"""What a stage of the campaign is: parts sized by the clock, and results that are on disk after each of them."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from deqcert.files import write_atomically

REPOSITORY = Path(__file__).parents[2]
MOST_FILES, MOST_BYTES = 8, 15 * 2**20  # what a borrowed machine sends back: 16 MiB a file
RESULT = "result.json"


@dataclass
class Setting:
    """Where and on what a stage runs.

    Attributes:
        root: Repository whose checkpoints and earlier results are used.
        out: Folder for what comes back: result.json and a few files.
        work: Folder for everything else.
        data: root of CIFAR-10, as data.root.
        device: "cuda" or "cpu".
        seconds: Time that the stage has.
        smoke: Whether to run at the size of a test, on embedded data.
        tiny: Tiny-ImageNet, packed or as folders.
        network: Checkpoint of MDEQ-SMALL for ImageNet; empty for random weights.
    """

    root: Path
    out: Path
    work: Path
    data: str
    device: str
    seconds: float
    smoke: bool
    tiny: str = ""
    network: str = ""
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds left."""
        return self.started + self.seconds - time.monotonic()


class Result:
    """What a stage has found so far; begins with what earlier runs of the stage have found.

    Attributes:
        tables: Title to {"columns": [...], "rows": [[...], ...]}.
        done: Names of the parts that are finished.
        state: What a part needs to go on where it ended.
    """

    def __init__(self, stage: str, setting: Setting, commit: str) -> None:
        before = earlier(setting.root, stage)
        self.tables: dict[str, dict[str, list[Any]]] = before.get("tables", {})
        self.done: list[str] = before.get("done", [])
        self.state: dict[str, Any] = before.get("state", {})
        self.finished = False
        self._setting = setting
        self._about = {
            "stage": stage,
            "commit": commit,
            "smoke": setting.smoke,
            "device": torch.cuda.get_device_name() if setting.device == "cuda" else platform.processor() or "cpu",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "runs": [*before.get("runs", [])],
        }

    def table(self, title: str, columns: Sequence[str]) -> None:
        """Begin a table, in the place of an earlier one of that title."""
        self.tables[title] = {"columns": list(columns), "rows": []}

    def row(self, title: str, *cells: Any) -> None:
        """Add a row and write everything."""
        self.tables[title]["rows"].append([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells])
        self.write()

    def write(self) -> None:
        """Write result.json."""
        seconds = self._setting.seconds - self._setting.left()
        about = self._about | {"runs": [*self._about["runs"], {"device": self._about["device"], "seconds": seconds}]}
        files = sorted(path.name for path in self._setting.out.iterdir() if path.name != RESULT and path.is_file())
        content = about | {
            "finished": self.finished,
            "done": self.done,
            "files": files,
            "tables": self.tables,
            "state": self.state,
        }
        write_atomically(self._setting.out / RESULT, json.dumps(content, indent=1).encode())


Run = Callable[[Setting, Result], bool]
"""Does a part; returns whether it is finished (a part that is not goes on in the next run of the stage)."""


@dataclass(frozen=True)
class Part:
    """A part of a stage.

    Attributes:
        name: Its name.
        seconds: What it needs at least; it is not begun with less.
        run: What to do.
    """

    name: str
    seconds: float
    run: Run


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: Its name.
        parts: Its parts in order.
        about: What its tables are about, for the page that they are filed in.
        data: Name of the option that says where its images are; None if it has none.
    """

    name: str
    parts: tuple[Part, ...]
    about: str
    data: str | None = "data"

    @property
    def seconds(self) -> float:
        """What a run of the stage needs at least: enough for the longest part."""
        return max(part.seconds for part in self.parts)

    def run(self, setting: Setting, commit: str) -> Result:
        """Do the parts that are not done yet, as far as the time goes."""
        result = Result(self.name, setting, commit)
        for part in self.parts:
            if part.name in result.done:
                continue
            if setting.left() < part.seconds and not setting.smoke:
                print(f"{self.name}: no time for {part.name} ({part.seconds:.0f} s)", flush=True)
                continue
            print(f"{self.name}: {part.name}, {setting.left():.0f} s left", flush=True)
            if part.run(setting, result):
                result.done.append(part.name)
            result.write()
        result.finished = all(part.name in result.done for part in self.parts)
        result.write()
        return result


def earlier(root: Path, stage: str) -> dict[str, Any]:
    """Return the results of a stage that have been filed; empty if there are none."""
    path = folder_of(root, stage) / RESULT
    return json.loads(path.read_text()) if path.is_file() else {}


def folder_of(root: Path, stage: str) -> Path:
    """Return where the results of a stage are filed."""
    return root / "benchmarks" / "gpu" / "results" / stage


def hand_in(setting: Setting, path: Path, name: str) -> None:
    """Copy a file to what comes back."""
    shutil.copy(path, setting.out / name)
