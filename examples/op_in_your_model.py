"""The ops of ``cekernels`` in your own model, without ``context_encoder``.

A small inpainting autoencoder in plain PyTorch: ``fill_polygons`` cuts random triangles out of the
images, ``ChannelwiseLinear`` connects all locations of the bottleneck, and ``masked_l2_loss``
compares prediction and image inside the holes.

    python examples/op_in_your_model.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cekernels import ChannelwiseLinear, fill_polygons, masked_l2_loss, to_fixed_point

SIZE = 32  # pixels
BATCH = 16
STEPS = 120


class Autoencoder(nn.Module):
    """Images (B, 3, 32, 32) in [-1, 1] to images of the same shape."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        # One linear map per channel over all 8 x 8 locations; the convolution mixes the channels.
        self.bottleneck = nn.Sequential(
            ChannelwiseLinear(channels, (8, 8), activation="relu"),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 3, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.decoder(self.bottleneck(self.encoder(images)))
        return output


def gradients(generator: torch.Generator) -> Tensor:
    """A batch of smooth synthetic images (B, 3, S, S) in [-1, 1]: colour gradients."""
    corners = 2 * torch.rand(BATCH, 3, 2, 2, generator=generator) - 1
    return nn.functional.interpolate(corners, (SIZE, SIZE), mode="bilinear", align_corners=True)


def triangles(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One triangle per image, as the rasterizer takes shapes: vertices (V, 2) and two offsets."""
    centre = SIZE * (0.3 + 0.4 * torch.rand(BATCH, 1, 2, generator=generator))
    corners = torch.tensor([[0.0, -8.0], [8.0, 6.0], [-8.0, 6.0]])  # pixels from the centre
    vertices = to_fixed_point((centre + corners).flatten(0, 1))
    contours = torch.arange(0, 3 * BATCH + 1, 3)  # contour i: vertices[contours[i]:contours[i + 1]]
    samples = torch.arange(BATCH + 1)  # sample i: contours samples[i] to samples[i + 1]
    return vertices, contours, samples


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        images = gradients(generator)
        holed, hole, _ = fill_polygons(images, 0.0, *triangles(generator))
        loss = masked_l2_loss(model(holed), images, hole)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step:3}  mean squared error in the holes {loss.item():.3f}")
    first, last = (sum(part) / 10 for part in (losses[:10], losses[-10:]))
    print(f"first 10 steps {first:.3f}, last 10 steps {last:.3f}")
    assert last < 0.5 * first, "the loss has not fallen"


if __name__ == "__main__":
    main()
