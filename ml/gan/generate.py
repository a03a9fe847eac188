"""`python -m ml.gan.generate`: draw images with a trained generator, in this process or on a cluster.

Image i is a function of the model, the seed and i: any number of workers gives the same files.
Exit codes: 0 done; 1 failed; 2 the model or the command line cannot be used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.gan.machine import usable_cores
from ml.gan.options import ADDRESS_HELP, DEVICES, command, count, positive, seed, unusable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml.gan.model import Generator

    Piece = tuple[int, NDArray[np.uint8]]  # number of its first image, images

FORMS = ("both", "files", "grid")
_GRID_AT_MOST = 4_096  # images on a grid of its own
_SHOWN_BESIDE_FILES = 100  # images on the grid that comes with single files
_TOO_MANY = f"a grid holds {_GRID_AT_MOST:,} images at most: use --as files"
_CHUNKS_PER_CALL = 4
_CALLS_PER_WORKER = 2  # in flight: one being drawn, one waiting


def parser() -> argparse.ArgumentParser:
    """The command line; every default is shown by --help."""
    found = command(
        "generate", "Draw images with a trained generator; a seed gives the same ones for any --workers."
    )
    found.add_argument(
        "--model", default="./models/gan/generator.pth", metavar="FILE", help=".pth or .safetensors"
    )
    found.add_argument("--num-images", type=positive, default=64, metavar="N", help="how many")
    found.add_argument(
        "--interpolate",
        type=count,
        default=0,
        metavar="STEPS",
        help="draw strips of so many images that lead from one to another; 0: none",
    )
    found.add_argument("--as", dest="form", choices=FORMS, default="both", help="what to write")
    found.add_argument("--output", default="./generated", metavar="DIR", help="folder of the PNG files")
    found.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="image i depends on this, i and the model"
    )
    found.add_argument("--device", choices=DEVICES, default="auto", help="without --distributed")
    found.add_argument("--distributed", action="store_true", help="draw in actors on a cluster's CPUs")
    found.add_argument("--workers", type=positive, default=2, metavar="N", help="actors, with --distributed")
    found.add_argument("--address", default="", help=ADDRESS_HELP)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(argv)
    if options.interpolate == 1 or (options.form == "grid" and options.num_images > _GRID_AT_MOST):
        limit = "--interpolate takes 2 steps or more" if options.interpolate == 1 else _TOO_MANY
        print(f"error: {limit}", file=sys.stderr)
        return 2
    try:
        from ml.gan.artifacts import ArtifactError, load_weights
        from ml.gan.model import generator_from
    except ImportError as error:
        print(
            f"error: this needs torch, which does not import ({error}); pip install 'miniray[ml]'",
            file=sys.stderr,
        )
        return 2
    try:
        generator = generator_from(load_weights(Path(options.model)))
    except ArtifactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {options.model}: {error}", file=sys.stderr)
        return 2
    if fault := unusable(Path(options.output)):
        print(f"error: --output: {fault}", file=sys.stderr)
        return 2
    if options.distributed:
        return _on_cluster(generator, options)
    return _here(generator, options)


def _here(generator: Generator, options: argparse.Namespace) -> int:
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"error: --device cuda, but torch {torch.__version__} sees no GPU here", file=sys.stderr)
        return 2
    use_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    generator = generator.to("cuda" if use_gpu else "cpu")
    threads = 1 if use_gpu else usable_cores()
    torch.set_num_threads(1)  # one thread a chunk, several chunks at a time: see draw.py
    with ThreadPoolExecutor(threads) as pool:
        return _write(_pieces_here(pool, generator, options), options)


def _pieces_here(
    pool: ThreadPoolExecutor, generator: Generator, options: argparse.Namespace
) -> Iterator[Piece]:
    from ml.gan.draw import chunks, draw_chunk

    pieces = chunks(0, options.num_images)
    drawn = pool.map(lambda piece: draw_chunk(generator, options.seed, *piece, options.interpolate), pieces)
    return ((first, images) for (first, _), images in zip(pieces, drawn))


class Artist:
    """The actor around one generator."""

    def __init__(self, latent_dim: int, width: int, weights: dict[str, NDArray[Any]]) -> None:
        import torch

        from ml.gan.model import Generator

        torch.set_num_threads(1)
        self._generator = Generator(latent_dim, width).eval()
        # Copies: torch knows no read-only tensors, and the arrays are views of shared memory.
        self._generator.load_state_dict(
            {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
        )

    def draw(self, seed: int, first: int, count: int, walk: int) -> NDArray[np.uint8]:
        from ml.gan.draw import draw_images

        return draw_images(self._generator, seed, first, count, walk)


def _on_cluster(generator: Generator, options: argparse.Namespace) -> int:
    from miniray.exceptions import RayError
    from ml.gan.cluster import NoCluster, connected

    try:
        with connected(options.address, options.workers):
            return _write(_pieces_of_actors(generator, options), options)
    except NoCluster as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RayError as error:
        print(f"error: the cluster could not finish: {error}", file=sys.stderr)
        return 1


def _pieces_of_actors(generator: Generator, options: argparse.Namespace) -> Iterator[Piece]:
    import miniray as ray
    from ml.gan.draw import CHUNK

    weights = ray.put({name: value.numpy() for name, value in generator.state_dict().items()})
    artist = ray.remote(Artist).options(num_cpus=1)
    artists = [artist.remote(generator.latent_dim, generator.width, weights) for _ in range(options.workers)]
    per_call = CHUNK * min(_CHUNKS_PER_CALL, max(1, options.num_images // (CHUNK * options.workers)))
    todo = iter(range(0, options.num_images, per_call))
    running: dict[Any, tuple[int, Any]] = {}

    def give(to: Any) -> None:
        first = next(todo, None)
        if first is not None:
            number = min(per_call, options.num_images - first)
            running[to.draw.remote(options.seed, first, number, options.interpolate)] = (first, to)

    for _ in range(_CALLS_PER_WORKER):
        for one in artists:
            give(one)
    while running:
        [ready], _ = ray.wait(list(running), num_returns=1)
        first, one = running.pop(ready)
        give(one)
        yield first, ray.get(ready)


def _write(pieces: Iterator[Piece], options: argparse.Namespace) -> int:
    import numpy as np
    from PIL import Image

    from ml.gan import plots

    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    most = _GRID_AT_MOST if options.form == "grid" or options.interpolate else _SHOWN_BESIDE_FILES
    shown = np.zeros((min(options.num_images, most), 3, 32, 32), dtype=np.uint8)
    for first, images in pieces:
        for index, image in enumerate(images, start=first):
            if options.form != "grid":
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"image_{index:05}.png")
            if index < len(shown):
                shown[index] = image
    if options.form != "files":
        plots.grid(shown, columns=options.interpolate).save(folder / "grid.png")
    seconds = time.perf_counter() - started
    where = f"{options.workers} actors" if options.distributed else "this process"
    rate = options.num_images / seconds
    print(f"{options.num_images:,} images in {seconds:.1f} s by {where}: {rate:,.0f} images/s")
    if options.form != "grid":
        print(f"  {folder / 'image_00000.png'} ...")
    if options.form != "files":
        print(f"  {folder / 'grid.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
