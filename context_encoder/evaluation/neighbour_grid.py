"""Image of nearest neighbours by several descriptors (Pathak et al. 2016, section 5.2)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from context_encoder.evaluation.crops import held_out_crops, training_crops
from context_encoder.evaluation.descriptors import (
    HOG_MISSING,
    Descriptor,
    EncoderFeatures,
    Hog,
    RawPixels,
    hog_available,
)
from context_encoder.evaluation.nearest_neighbours import (
    Neighbours,
    check_candidates,
    same_photographs,
)
from context_encoder.masks import (
    MASKS,
    build_mask_sampler,
    masks_with_fixed_hole,
    masks_without_files,
)
from context_encoder.runs import Which, load_model, run_root
from context_encoder.utils.device import Processes, choose_device
from context_encoder.utils.files import check_writable, write_file
from context_encoder.utils.image_grid import save_sheet, shorten
from context_encoder.utils.metrics import to_unit
from context_encoder.utils.registry import NameIn

log = logging.getLogger("context_encoder")


class NeighboursConfig(BaseModel):
    """Draw the nearest neighbours of holes' contexts: by encoder features, HOG and raw pixels.

    Without `data`, the queries are photographs that the run held out, and the candidates those
    that it was trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Path = Field(description="Run folder of training, or a checkpoint folder in it.")
    data: Path | None = Field(
        None, description="Folder of query photographs. Default: those the run held out."
    )
    candidates: Path | None = Field(
        None, description="Folder of photographs to search. Default: those the run trained on."
    )
    candidate_crops: Annotated[int, Field(ge=1)] = Field(
        256, description="Candidate crops, spread evenly over their photographs."
    )
    queries: Annotated[int, Field(ge=1)] = Field(6, description="Rows of the sheet.")
    k: Annotated[int, Field(ge=1)] = Field(4, description="Neighbours per descriptor.")
    mask: Annotated[str, NameIn(MASKS.only(masks_without_files))] = Field(
        default_factory=lambda: masks_with_fixed_hole()[0], description="Kind of mask."
    )
    layer: str | None = Field(
        None, description="Layer of encoder or bottleneck. Default: the encoder's output."
    )
    out: Path | None = Field(
        None,
        description="PNG to write, and a JSON file beside it. Default: in the run folder.",
    )
    which: Which = Field(
        "best", description="Checkpoint of the run: best on held-out photographs, or last."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of the masks.")
    device: str = Field("auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N.")


def draw_sheet(config: NeighboursConfig) -> Path:
    """Search and write the sheet and its JSON file; returns the sheet's path.

    Raises:
        RunError, ValueError, OSError: an input cannot be used; the message says what to do.
    """
    # Not into a checkpoint: the next save replaces that folder.
    out = config.out or (run_root(config.checkpoint) or Path()) / f"neighbours_{config.mask}.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"`out` {out} must end in .png")
    check_writable(out)
    device = choose_device(config.device, Processes())
    run = load_model(config.checkpoint, which=config.which, device=device)
    queries = held_out_crops(run.config, config.data, samples=config.queries)
    candidates = training_crops(run.config, config.candidates, samples=config.candidate_crops)
    for name, reason in (*queries.unreadable, *candidates.unreadable):
        log.warning("skipped %s: %s", name, reason)
    check_candidates(queries, candidates, config.k)
    descriptors: dict[str, Descriptor] = {
        "encoder": EncoderFeatures(candidates, run, config.layer),
        "raw pixels": RawPixels(candidates),
    }
    if hog_available():
        descriptors["HOG"] = Hog(candidates)
    else:
        log.warning("HOG is skipped: %s", HOG_MISSING)

    index = torch.arange(len(queries))
    sampler = build_mask_sampler(config.mask, queries.images.shape[-1], config.seed)
    mask, _ = sampler(torch.zeros_like(index), index)
    image = torch.where(mask, 0, queries.floats(index))
    given = torch.where(mask, torch.tensor(run.config.fill_color()).view(1, 3, 1, 1), image)
    columns = [("query", to_unit(given))]
    captions = [[shorten(name) for name in queries.names]]
    found: dict[str, list[list[dict[str, str | float]]]] = {}
    for name in ("encoder", "HOG", "raw pixels"):
        if name not in descriptors:
            continue
        search = Neighbours(candidates, descriptors[name])
        numbers, distances = search(image, mask, queries.paths, config.k)
        found[name] = [
            [
                {"photograph": candidates.names[n], "crop": candidates.numbers[n], "distance": d}
                for n, d in zip(row, values, strict=True)
            ]
            for row, values in zip(numbers.tolist(), distances.tolist(), strict=True)
        ]
        for rank in range(config.k):
            columns.append((f"{name} {rank + 1}", to_unit(candidates.floats(numbers[:, rank]))))
            captions.append([f"{value:.3g}" for value in distances[:, rank].tolist()])
    excluded = same_photographs(queries, candidates)
    layer = config.layer or "encoder's output"
    title = (
        f"Nearest neighbours of the context of {config.mask} holes, by {layer} of {run.path} "
        f"(step {run.step}), HOG and raw pixels\n"
        f"among {len(candidates)} crops of {candidates.photographs} photographs; the hole is "
        f"covered in these too when they are compared; {excluded} pairs of the same file left out; "
        "below each: its distance"
    )
    save_sheet(out, columns, title=title, captions=captions)
    record = {
        "checkpoint": str(run.path),
        "step": run.step,
        "layer": layer,
        "mask": config.mask,
        "seed": config.seed,
        "same_file_pairs_left_out": excluded,
        "candidates": {"crops": len(candidates), "photographs": candidates.photographs},
        "unreadable": dict((*queries.unreadable, *candidates.unreadable)),
        "queries": [
            {"photograph": name, "crop": number, **{key: rows[i] for key, rows in found.items()}}
            for i, (name, number) in enumerate(zip(queries.names, queries.numbers, strict=True))
        ],
    }
    write_file(out.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    return out
