"""Training on a folder of photographs from Python, and filling a hole with the result.

python examples/train_on_folder.py                            # packaged photographs, seconds
python examples/train_on_folder.py FOLDER --steps 20000       # your own, subfolders included
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from context_encoder import Inpainter, TrainConfig, run_training
from context_encoder.data import embedded_photos, list_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=embedded_photos())
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    # A preset sets all values; every other field of TrainConfig changes one of them
    # (python -m context_encoder.train --help lists them). "laptop" is a small network for 64 x 64
    # pixels.
    config = TrainConfig(
        preset="laptop",
        data=arguments.folder,
        out=arguments.out,
        mask="block",
        steps=arguments.steps,
        val_every=arguments.steps,
        log_every=max(1, arguments.steps // 4),
    )
    ended = run_training(config)
    if ended.interrupted:  # by Ctrl-C, and saved: run_training(config, resume=...) continues
        return

    # The run folder holds the checkpoints. Fill a hole of a quarter of the width in one photograph.
    inpainter = Inpainter.from_run(arguments.out)
    photo = list_images(arguments.folder)[0]
    result = inpainter(photo, boxes=[(60, 40, 120, 100)])
    result.save(arguments.out / "filled.png")
    print(f"{photo.name} with its hole filled: {arguments.out / 'filled.png'}")


if __name__ == "__main__":
    main()
