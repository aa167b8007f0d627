"""A campaign on a GPU that is at hand for minutes: stages that fit into the time there is, one after the other.

    python benchmarks/gpu/campaign.py --stage next --seconds 480 --data DATA --out OUT  # on the machine with the GPU
    python benchmarks/gpu/campaign.py --adopt OUT                                       # in the repository
    python benchmarks/gpu/campaign.py --smoke --out OUT                                 # all stages, small, on the CPU

README.md beside this file lists the stages and says how to prepare a machine without a network.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from adopt import LIST, PERFORMANCE, adopt
from certification import CERTIFY
from check import CHECK
from imagenet import IMAGENET
from speed import SPEED
from stage import REPOSITORY, Setting, Stage, earlier
from training import TRAIN_LARGE, TRAIN_MORE, TRAIN_RESNET, TRAIN_SMALL, TRAIN_TINY

from deqcert.errors import DeqcertError, SettingError, require

STAGES: tuple[Stage, ...] = (
    CHECK,
    SPEED,
    TRAIN_SMALL,
    TRAIN_LARGE,
    TRAIN_RESNET,
    CERTIFY,
    *TRAIN_MORE,
    IMAGENET,
    TRAIN_TINY,
)
DATA = {"data": "CIFAR-10", "tiny": "Tiny-ImageNet, a folder or packed"}


def head() -> str:
    """Return the commit of the repository; empty where there is none."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def chosen(name: str, root: Path) -> Stage:
    """Return the stage of that name; ``next`` is the first that is not finished.

    Raises:
        SettingError: There is none.
    """
    names = {stage.name: stage for stage in STAGES}
    if name == "next":
        for stage in STAGES:
            if not earlier(root, stage.name).get("finished", False):
                return stage
        raise SettingError("--stage", name, "must be the name of a stage: all of them are finished")
    require(name in names, "--stage", name, f"must be next or one of {', '.join(names)}")
    return names[name]


def run(options: argparse.Namespace) -> None:
    """Run one stage."""
    require(options.out is not None, "--out", None, "must be a folder for the results")
    stage = chosen(options.stage, REPOSITORY)
    if stage.data is not None:
        path = getattr(options, stage.data)
        found = path is not None and Path(path).exists()
        require(found, f"--{stage.data}", path, f"must be root of {DATA[stage.data]}, as data.root")
    if options.network is not None:
        require(Path(options.network).is_file(), "--network", options.network, "must be a checkpoint")
    needs = f"must be at least {stage.seconds:.0f}: what stage {stage.name} needs"
    require(options.seconds >= stage.seconds, "--seconds", options.seconds, needs)
    require(torch.cuda.is_available(), "--stage", stage.name, "needs a GPU; --smoke tries every stage without one")
    commit = options.commit or head()
    require(bool(commit), "--commit", options.commit, "must be the commit of the code where there is no git")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        data, tiny, network = (str(each or "") for each in (options.data, options.tiny, options.network))
        setting = Setting(REPOSITORY, out, Path(work), data, "cuda", options.seconds, False, tiny, network)
        result = stage.run(setting, commit)
    print(f"{stage.name}: {'finished' if result.finished else 'to go on in another run'}; adopt it by --adopt {out}")


def smoke(out: Path) -> None:
    """Run every stage at the size of a test on the CPU; file each result into a copy of the pages, go on from it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repository"
        for page in (PERFORMANCE, LIST):
            (root / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / page, root / page)
        for _ in range(len(STAGES) + 2):  # train-large and train-tiny take two runs
            stage = chosen("next", root)
            home, work = out / stage.name, Path(folder) / stage.name
            for each in (home, work):
                shutil.rmtree(each, ignore_errors=True)
                each.mkdir(parents=True)
            stage.run(Setting(root, home, work, "", "cpu", 60.0, smoke=True), "smoke")
            adopt(home, root, "smoke", STAGES)
        for page in (PERFORMANCE, LIST):
            shutil.copy(root / page, out / page.name)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", default="next", help="name of a stage; next is the first that is not finished")
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="time for the stage, results written (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    for option, name in DATA.items():
        parser.add_argument(f"--{option}", help=f"root of {name}, as data.root")
    parser.add_argument("--network", help="checkpoint of MDEQ-SMALL for ImageNet (default: random weights)")
    parser.add_argument("--commit", help="commit of the code; default: asked of git")
    parser.add_argument("--adopt", type=Path, metavar="OUT", help="file results into the repository")
    parser.add_argument("--smoke", action="store_true", help="try every stage at the size of a test, on the CPU")
    options = parser.parse_args(args)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    try:
        if options.adopt is not None:
            for path in adopt(options.adopt, REPOSITORY, head(), STAGES):
                print(path)
        elif options.smoke:
            require(options.out is not None, "--out", None, "must be a folder for the results")
            smoke(options.out)
        else:
            run(options)
    except DeqcertError as error:
        print(f"campaign: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
