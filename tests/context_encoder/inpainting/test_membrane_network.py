"""The network with the weights of the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cekernels import remove_seam
from context_encoder.config import TrainConfig
from context_encoder.data import embedded_photos, list_images, read_image, split_photos
from context_encoder.inpainting.membrane_network import included_network, predict_holes


def test_it_is_better_than_the_membrane_on_held_out_photographs() -> None:
    """Squares of 24 pixels in the middle of the 8 held-out photographs that are included."""
    root = embedded_photos()
    _, held_out = split_photos(list_images(root), root, TrainConfig().val_fraction)
    assert len(held_out) == 8
    errors = []
    for path in held_out:
        image = np.asarray(read_image(path))
        top, left = (image.shape[0] - 128) // 2, (image.shape[1] - 128) // 2
        crop = image[top : top + 128, left : left + 128].astype(np.float32)
        mask = np.zeros((128, 128), bool)
        mask[52:76, 52:76] = True
        plain = torch.from_numpy(np.where(mask[..., None], np.float32(0), crop)).permute(2, 0, 1)
        membrane = remove_seam(plain[None], torch.from_numpy(mask)[None, None])[0]
        for filled in (predict_holes(crop, mask), membrane.permute(1, 2, 0).numpy()):
            assert np.array_equal(filled[~mask], crop[~mask])
            error = np.square(filled - crop)[mask].mean()
            errors.append(10 * np.log10(255**2 / error))
    ours, theirs = errors[::2], errors[1::2]
    assert np.mean(ours) > np.mean(theirs) + 0.2


@pytest.mark.parametrize("shape", [(20, 300), (31, 33), (1, 9), (500, 70)])
def test_images_of_any_shape(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (*shape, 3)).astype(np.float32)
    mask = np.zeros(shape, bool)
    mask[: max(1, shape[0] // 2), 3 : 3 + shape[1] // 3] = True
    filled = predict_holes(image, mask)
    assert filled.shape == image.shape
    assert filled.dtype == np.float32
    assert np.isfinite(filled).all()
    assert np.array_equal(filled[~mask], image[~mask])
    hidden = image.copy()
    hidden[mask] = np.nan
    assert np.array_equal(predict_holes(hidden, mask), np.where(mask[..., None], filled, hidden))


def test_the_network_is_loaded_once() -> None:
    assert included_network() is included_network()
    assert not included_network().training
