"""Damaged and altered image files: each is read, or refused in one way.

A run takes a few seconds. ``CONTEXT_ENCODER_FUZZ_SECONDS=600 pytest
tests/context_encoder/data/test_fuzz_images.py`` searches for longer.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from context_encoder.data import UnreadableImage, read_image
from context_encoder.data.decode import MAX_MEGAPIXELS
from context_encoder.data.mask_images import InpaintError, read_mask, whiteness
from context_encoder.inpainting.encode import write_picture
from context_encoder.inpainting.image_io import read_picture
from tests.helpers.odd_images import odd_images, with_pillow
from tests.helpers.odd_masks import HEIGHT, MARKS, REFUSED, WIDTH, picture

SECONDS = float(os.environ.get("CONTEXT_ENCODER_FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("CONTEXT_ENCODER_FUZZ_SEED", "0"))


def corpus() -> list[tuple[str, bytes]]:
    files = [(odd.name, odd.data) for odd in odd_images()]
    small = Image.fromarray(picture()[:24, :30])
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "text", 6
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"):
        options = {"exif": exif.tobytes()} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
        files.append((f"plain.{kind.lower()}", with_pillow(small, kind, **options)))
    for odd in (*MARKS, *REFUSED):
        made = odd.image()
        data = made if isinstance(made, bytes) else with_pillow(made, "PNG")
        files.append((f"mask {odd.name}", data))
    return files


def altered(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed, removed, repeated or cut off; more often in the header."""
    result = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(min(len(result), draw.choice((64, 512, len(result)))))
        kind = draw.randrange(6)
        if kind == 0:
            result[at] = draw.choice((0, 1, 2, 127, 128, 255))
        elif kind == 1:
            result[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del result[at : at + draw.randrange(1, 9)]
        elif kind == 3:
            result[at:at] = result[at : at + draw.randrange(1, 9)]
        elif kind == 4:
            result[at : at + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        elif draw.random() < 0.2:
            del result[at:]
        if not result:
            return data[:1]
    return bytes(result)


def test_every_altered_file_is_read_or_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    draw, files = random.Random(SEED), corpus()
    path, out = tmp_path / "a", tmp_path / "out.png"
    image = picture()
    read = refused = 0
    slowest, lines = 0.0, set()
    end, latest = time.process_time() + SECONDS, time.monotonic() + 2 * SECONDS
    while (time.process_time() < end and time.monotonic() < latest) or min(read, refused) < 20:
        name, data = draw.choice(files)
        path.write_bytes(altered(data, draw))
        begin = time.process_time()
        for call in (
            lambda: read_image(path, max_megapixels=4),
            lambda: read_image(path, min_side=8, max_megapixels=4),
            lambda: whiteness(path),
            lambda: read_mask(path, WIDTH, HEIGHT, picture=image),
            lambda: read_picture(path),
        ):
            if path.stat().st_size == 0:
                continue
            try:
                result = call()
            except (UnreadableImage, InpaintError) as error:
                refused += 1
                lines.add(str(error).count("\n"))
                continue
            except Exception as error:
                kept = tmp_path / "failing"
                kept.write_bytes(path.read_bytes())
                raise AssertionError(f"{name}, kept as {kept}") from error
            read += 1
            # Writing waits for the disk, so not every time.
            if hasattr(result, "pixels") and result.pixels.size < 2**16 and read % 7 == 0:
                write_picture(result.pixels, result.info, out)
                again = read_picture(out)
                assert again.pixels.dtype == result.pixels.dtype, name
                assert np.array_equal(again.pixels, result.pixels), name
        slowest = max(slowest, time.process_time() - begin)
    assert lines == {0}
    assert slowest < 10, "seconds of CPU time for one small file"
    assert capfd.readouterr().err == ""
    assert not recwarn.list


def test_headers_that_promise_too_much_are_refused_without_the_memory(tmp_path: Path) -> None:
    side = int((MAX_MEGAPIXELS * 1e6) ** 0.5) + 1
    for data in (
        b"P6 %d %d 65535\n" % (side, side) + b"\0" * 100,
        b"P5 4294967295 4294967295 255\n" + b"\0" * 100,
    ):
        (tmp_path / "a.ppm").write_bytes(data)
        with pytest.raises(UnreadableImage, match="exceeds the limit of 300"):
            read_image(tmp_path / "a.ppm")
