"""`python -m ml.gan.measure`: how good a generator's images, or a folder of images, are beside a data set.

The same figures as a training run writes, for any saved generator: to compare runs, or with another program's
images. Exit codes: 0 done; 2 the model, the images, the data set or the command line cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.gan import data, readers
from ml.gan.options import command, count, seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FEWEST = 2


def parser() -> argparse.ArgumentParser:
    """The command line; every default is shown by --help."""
    found = command("measure", "Measure a generator, or a folder of images, against a data set.")
    what = found.add_mutually_exclusive_group()
    what.add_argument("--model", default="./models/gan/generator.pth", metavar="FILE", help="a generator")
    what.add_argument("--images", metavar="DIR", help="a folder of images, instead of a generator")
    found.add_argument("--dataset", default="mnist5k", metavar="NAME", help=" | ".join(data.names()))
    found.add_argument("--data-dir", metavar="DIR", help="where the data set's files lie; searched first")
    found.add_argument(
        "--num-images", type=count, default=1_000, metavar="N", help="to compare, of each side, at most"
    )
    found.add_argument("--seed", type=seed, default=0, metavar="N", help="of the images that are drawn")
    found.add_argument("--json", action="store_true", help="print all figures as JSON")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        real = data.load(options.dataset, data_dir=options.data_dir)
        from ml.gan.artifacts import ArtifactError
        from ml.gan.judge import Judge
        from ml.gan.scores import sentence
    except data.DataError as error:
        return _refuse(str(error))
    except ImportError as error:
        return _refuse(f"this needs torch, which does not import ({error}); pip install 'miniray[ml]'")
    try:
        drawn = _drawn(options)
    except ArtifactError as error:
        return _refuse(str(error))
    except (ValueError, readers.BadData) as error:
        return _refuse(f"{options.images or options.model}: {error}")
    if len(drawn) < _FEWEST:
        return _refuse(f"{len(drawn)} images: at least {_FEWEST} are needed")
    judge = Judge(real.images, real.labels, len(drawn))
    verdict = judge.verdict(drawn).to_json()
    if options.json:
        print(json.dumps({"basis": judge.to_json(), "verdict": verdict}, indent=1))
        return 0
    print(f"{options.images or options.model}: {sentence(verdict)}")
    if judge.best is not None:
        print(f"other images of {real.name}: {sentence(judge.best.to_json())}")
    print(f"on {judge.extractor.name}, {verdict['images']:,} images against {judge.images:,}")
    return 0


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _drawn(options: argparse.Namespace) -> NDArray[np.uint8]:
    if options.images:
        found: Any = readers.folder(Path(options.images)).images[: options.num_images]
        return found
    from ml.gan.artifacts import load_weights
    from ml.gan.draw import draw_images
    from ml.gan.model import generator_from

    generator = generator_from(load_weights(Path(options.model)))
    if options.num_images < _FEWEST:
        raise ValueError(f"--num-images {options.num_images}: at least {_FEWEST} are needed")
    return draw_images(generator, options.seed, 0, options.num_images)


if __name__ == "__main__":
    sys.exit(main())
