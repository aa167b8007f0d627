"""Images per second and worker: decoding, cropping and reading from folders, tar archives and packed files.

    python benchmarks/data_speed.py --tar imagenet_sample_256.tar [--packed tiny_imagenet_jpeg.npz] [--images 500]

Prints Markdown tables. An image of 500 x 375 pixels, the average of ImageNet, is made of a photograph that comes with
scikit-learn. Images per second of a worker are per second of CPU time, which other load on the machine changes little,
the loader around them included; each ratio is to the first row. Images per second of the loader are by the clock.
"""

from __future__ import annotations

import argparse
import gc
import io
import resource
import tarfile
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_sample_images

from deqcert.data import ImageFolder
from deqcert.data.sources import find_source

HEADER = "| workers | images/s of a worker | ratio | images/s of the loader |\n| --- | ---: | ---: | ---: | ---: |"


def photograph(quality: int) -> bytes:
    """Return 500 x 375 pixels of a photograph as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).crop((70, 26, 570, 401)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_folder(root: Path, members: list[tuple[str, bytes]]) -> None:
    for name, content in members:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def measured(images: int, training: bool, workers: int, settings: dict[str, Any]) -> tuple[float, float]:
    """Return images per second of CPU time of all workers, and per second of the clock."""
    module = ImageFolder(num_workers=workers, batch_size=50, eval_batch_size=50, **settings)
    loader = module.train_dataloader() if training else module.test_dataloader()
    before, read = resource.getrusage(resource.RUSAGE_CHILDREN), 0
    next(iter(loader))  # the workers are there, and the files in the cache of the system
    begin = time.perf_counter()
    while read < images:
        for batch, _, _ in loader:
            read += len(batch)
    taken = time.perf_counter() - begin
    prefetched = min(len(loader), 1 + 2 * workers) * 50
    del loader
    gc.collect()  # ends the workers, whose CPU time is counted then
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (read + prefetched) / cpu, read / taken


def table(title: str, cases: list[tuple[str, bool, dict[str, Any]]], images: int) -> None:
    print(f"\n| {title} {HEADER}")
    baseline = 0.0
    for name, training, settings in cases:
        for workers in (1, 2):
            worker, loader = measured(images, training, workers, settings)
            baseline = baseline or worker
            print(f"| {name} | {workers} | {worker:.0f} | {worker / baseline:.2f} | {loader:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tar", type=Path, required=True, help="archive of val/<class>/*, in sizes around 256 pixels")
    parser.add_argument("--packed", type=Path, help="packed Tiny-ImageNet")
    parser.add_argument("--images", type=int, default=500, help="images per row")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality of the photograph")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = find_source(options.tar, "val")
        assert source is not None, f"{options.tar}: holds no val"
        sample = [(source.names[number], source.read(number)) for number in range(min(options.images, 1000))]
        content = photograph(options.quality)
        photographs = [(f"class/{number:04}.jpg", content) for number in range(options.images)]
        roots: list[tuple[str, int]] = []
        for kind, members in (("256 x 256", sample), (f"500 x 375 ({len(content) // 1000} kB)", photographs)):
            classes = len({name.partition("/")[0] for name, _ in members})
            for form, write in (("folder", write_folder), ("tar", write_tar)):
                root = folder / f"{kind} {form}"
                root.mkdir()
                for split in ("train", "val"):
                    write(root / (f"{split}.tar" if form == "tar" else split), members)
                roots.append((str(root), classes))
        for purpose, training in (("training crop", True), ("evaluation", False)):
            cases = [
                (Path(root).name, training, {"root": root, "image_size": 224, "resize": 256, "num_classes": classes})
                for root, classes in roots
            ]
            table(f"224 x 224, {purpose}", cases, options.images)
        if options.packed:
            settings: dict[str, Any] = {"image_size": 64, "resize": 64, "num_classes": 200, "root": str(options.packed)}
            cases = [
                ("random crop", True, settings),
                ("crop_and_flip", True, {**settings, "augmentation": "crop_and_flip"}),
            ]
            table("Tiny-ImageNet, 64 x 64, packed", cases, 10 * options.images)

        write_tar(folder / "many.tar", [(f"val/{number % 100}/{number}.jpg", b"") for number in range(20_000)])
        begin = time.process_time()
        assert find_source(folder / "many.tar", "val") is not None
        print(f"\nHeaders of a tar archive: {20_000 / (time.process_time() - begin):,.0f} per second of CPU time.")


if __name__ == "__main__":
    main()
