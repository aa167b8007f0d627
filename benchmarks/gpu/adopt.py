"""Files what a run of a stage has brought home: results, tables, checkpoints with their cards, the list of stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import put, table
from stage import MOST_BYTES, MOST_FILES, RESULT, Stage, earlier, folder_of
from training import weights_in

from deqcert.checkpoints import save_checkpoint
from deqcert.checkpoints.architecture import ARCHITECTURE
from deqcert.errors import DataError

PERFORMANCE, LIST = Path("docs/performance.md"), Path("benchmarks/gpu/README.md")


def adopt(folder: Path, root: Path, commit: str, stages: Sequence[Stage]) -> list[Path]:
    """File the results in ``folder`` into the repository ``root``; return what was written.

    Raises:
        DataError: They are damaged, of another commit or of no stage that there is.
    """
    content = _read(folder, root, commit, [stage.name for stage in stages])
    (stage,) = (each for each in stages if each.name == content["stage"])
    written = []
    home = folder_of(root, content["stage"])
    home.mkdir(parents=True, exist_ok=True)
    for name in [RESULT, *content["files"]]:
        if not name.endswith(".pt"):
            shutil.copy(folder / name, home / name)
            written.append(home / name)
    if "checkpoint" in content["state"]:
        written += _file_checkpoint(folder, root, content, stage)
    abouts = {stage.name: stage.about for stage in stages}
    results = {name: found for name in abouts if (found := earlier(root, name))}
    put(root / PERFORMANCE, "gpu", "\n\n".join(_section(abouts[name], each) for name, each in results.items()))
    put(root / LIST, "stages", _list(stages, results))
    return [*written, root / PERFORMANCE, root / LIST]


def _read(folder: Path, root: Path, commit: str, names: Sequence[str]) -> dict[str, Any]:
    path = folder / RESULT
    if not path.is_file():
        raise DataError(f"--adopt {folder}: must hold {RESULT}")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        stage, made = content["stage"], content["commit"]
        files = [folder / name for name in content["files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path}: is not the result of a stage ({error!r})") from error
    if stage not in names:
        raise DataError(f"{path}: stage = {stage!r}: must be one of {', '.join(names)}")
    if made != commit:
        raise DataError(f"{path}: commit = {made}: must be {commit}, the repository's; check it out to adopt this")
    if content["smoke"] and (root / ".git").exists():
        raise DataError(f"{path}: smoke = True: results at the size of a test are not filed")
    for file in files:
        if not file.is_file() or file.parent != folder:
            raise DataError(f"{file}: is missing")
    if len(files) > MOST_FILES or any(file.stat().st_size > MOST_BYTES + 2**20 for file in files):
        raise DataError(f"{folder}: must hold at most {MOST_FILES} files of 16 MiB")
    return content


def _file_checkpoint(folder: Path, root: Path, content: Mapping[str, Any], stage: Stage) -> list[Path]:
    state = content["state"]
    home = root / "checkpoints" / state["checkpoint"]
    home.mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "state_dict": weights_in(folder),
        "hyper_parameters": {"sigma": state["sigma"]},
        ARCHITECTURE: state["architecture"],
        "pytorch-lightning_version": "2.6.0",
    }
    save_checkpoint(checkpoint, home / "model.ckpt")
    lines = [
        f"# {state['checkpoint']}",
        "",
        f"σ = {state['sigma']}, objective {state['objective']}, {state['epochs']:.1f} epochs in all, trained by",
        "",
        "```bash",
        f"python benchmarks/gpu/campaign.py --stage {stage.name} --seconds S --{stage.data} DATA --out OUT",
        "```",
        "",
        f"at commit {content['commit']} on {content['device']}, torch {content['torch']}, {content['date']}, in runs",
        f"of {', '.join(format(run['seconds'], '.0f') for run in content['runs'])} s. Averaged weights, matrices and",
        "kernels in 16 bits; `weights_only=True` loads it.",
        "",
        *(_markdown(title, found) for title, found in content["tables"].items()),
    ]
    (home / "README.md").write_text("\n".join(lines) + "\n")
    return [home / "model.ckpt", home / "README.md"]


def _section(about: str, content: Mapping[str, Any]) -> str:
    where = f"{content['device']}, torch {content['torch']}, {content['date']}, commit {content['commit'][:7]}"
    lines = [f"### {content['stage']}", "", f"{about} {where}.", ""]
    for title, found in content["tables"].items():
        lines += [_markdown(title, found), ""]
    return "\n".join(lines).strip()


def _markdown(title: str, found: Mapping[str, Any]) -> str:
    first, *others = found["columns"]
    return table([f"{title}: {first}", *others], found["rows"])


def _list(stages: Sequence[Stage], results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| stage | state | last run | commit |", "| --- | --- | --- | --- |"]
    for stage in stages:
        content = results.get(stage.name)
        if content is None:
            lines.append(f"| {stage.name} | open | | |")
            continue
        state = "finished" if content["finished"] else f"begun ({', '.join(content['done']) or 'goes on'})"
        lines.append(f"| {stage.name} | {state} | {content['device']}, {content['date']} | {content['commit'][:7]} |")
    return "\n".join(lines)
