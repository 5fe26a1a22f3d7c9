"""``python -m context_encoder.pack``: images into tar shards, for training from few large files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from context_encoder.data.pack import Encoding, PackReport, pack
from context_encoder.data.replacing import DataError
from context_encoder.utils.cli import parse_config, run_command

_SHOWN = 10


class PackConfig(BaseModel):
    """Write images to tar shards of the WebDataset format, with an index beside each shard.

    Every image is decoded, and left out if that fails. After an interruption, the same command
    goes on with the next shard.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: Path = Field(description="Folder, text file that lists images, or shards.")
    out: Path = Field(description="Folder of the shards.")
    images_per_shard: Annotated[int, Field(ge=1)] = Field(1000, description="Images per shard.")
    resize: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Largest short side in pixels; larger images are shrunk. Needs `encode`."
    )
    encode: Encoding = Field(
        "keep", description="keep copies the files; others store 8-bit RGB, upright."
    )
    quality: Annotated[int, Field(ge=1, le=100)] = Field(
        95, description="Quality of JPEG and WebP."
    )
    labels: bool = Field(
        False, description="Store the number of an image's first folder as its class (.cls)."
    )
    workers: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Threads that decode. Default: one per CPU."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    return run_command(
        "pack",
        _parse,
        _pack,
        arguments,
        failures=(DataError,),
        when_interrupted="the shards that are complete are kept; the same command goes on",
    )


def _parse(prog: str, words: Sequence[str]) -> PackConfig:
    """The two folders may be given without their options, ``pack FOLDER SHARDS``."""
    words = list(words)
    for name in ("--source", "--out"):
        if words and not words[0].startswith("-"):
            words += [name, words.pop(0)]
    return parse_config(PackConfig, prog, words)


def _pack(config: PackConfig) -> None:
    report = pack(**dict(config))
    for line in _lines(config, report):
        print(line)


def _lines(config: PackConfig, report: PackReport) -> list[str]:
    found = f", {report.found} of them there already" if report.found else ""
    lines = [
        f"{report.images} images in {report.shards} shards{found}, {report.bytes / 1e6:.1f} MB, "
        f"in {config.out}"
    ]
    if report.skipped:
        lines.append(f"left out {len(report.skipped)} that cannot be read:")
        lines += [f"  {name}: {reason}" for name, reason in report.skipped[:_SHOWN]]
        if len(report.skipped) > _SHOWN:
            lines.append(f"  and {len(report.skipped) - _SHOWN} more")
    return lines


if __name__ == "__main__":
    sys.exit(main())
