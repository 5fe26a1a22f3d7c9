"""philox4x32 and random_below against the published vectors and Python's integers."""

from __future__ import annotations

import random

import pytest
import torch

from cekernels import philox4x32, random_below

WORD = 0xFFFFFFFF


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox-4x32-10 in Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & WORD, (p0 >> 32) ^ c[3] ^ k[1], p0 & WORD]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return tuple(c)


def tensors(counter: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(word) for word in counter)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    """The vectors that Random123 publishes (kat_vectors)."""
    assert tuple(map(int, philox4x32(tensors(counter), key))) == expected
    assert tuple(map(int, philox4x32(tensors(counter), tensors(key)))) == expected
    assert philox(counter, key) == expected


def test_agrees_with_unbounded_integers():
    draw = random.Random(0)
    rows = [[draw.getrandbits(32) for _ in range(6)] for _ in range(200)]
    c0, c1, c2, c3, k0, k1 = torch.tensor(rows).unbind(1)
    words = torch.stack(philox4x32((c0, c1, c2, c3), (k0, k1)), dim=1)
    assert words.tolist() == [list(philox(tuple(row[:4]), tuple(row[4:]))) for row in rows]


def test_counters_broadcast_and_wrap():
    row, column = torch.arange(3)[:, None], torch.arange(5)
    zero = torch.tensor(0)
    words = philox4x32((row, column, zero, zero), (7, 8))
    assert all(word.shape == (3, 5) and word.dtype == torch.int64 for word in words)
    assert tuple(int(word[2, 4]) for word in words) == philox((2, 4, 0, 0), (7, 8))
    around = philox4x32((row - (1 << 32), column + (1 << 40), zero, zero), (7 + (1 << 32), 8))
    assert all(torch.equal(a, b) for a, b in zip(words, around, strict=True))


def test_words_are_uniform_and_uncorrelated():
    zero = torch.tensor(0)
    words = torch.stack(philox4x32((torch.arange(1 << 16), zero, zero, zero), (1, 2)))
    ones = ((words[..., None] >> torch.arange(32)) & 1).double().mean(1)
    assert (ones - 0.5).abs().max() < 5 * 0.5 / 256  # five standard deviations, all 128 bits
    unit = words.double() / 2**32 - 0.5
    streams = torch.cat((unit, unit.roll(1, dims=1)))  # paired with the next counter's words
    correlation = torch.corrcoef(streams)
    assert (correlation - torch.eye(8)).abs().max() < 5 / 256


def test_random_below_is_the_exact_share():
    draw = random.Random(1)
    for bound in (1, 2, 3, 10, 12345, 1 << 31):
        words = [0, WORD] + [draw.getrandbits(32) for _ in range(100)]
        expected = [word * bound // 2**32 for word in words]
        assert random_below(torch.tensor(words), bound).tolist() == expected
        assert random_below(torch.tensor(words), torch.tensor(bound)).tolist() == expected
        assert expected[:2] == [0, bound - 1]


def test_random_below_is_uniform():
    zero = torch.tensor(0)
    word, *_ = philox4x32((torch.arange(60000), zero, zero, zero), (3, 4))
    counts = random_below(word, 6).bincount(minlength=6).double()
    assert ((counts - 10000) ** 2 / 10000).sum() < 20.5  # chi-square, 5 degrees: p = 0.001


def test_registered_as_torch_expects():
    c = torch.arange(6).view(2, 3)
    torch.library.opcheck(
        torch.ops.cekernels.philox4x32.default,
        (c, c[:, :1], torch.tensor(1), c[0], 5, 2**32 - 1),
    )
    compiled = torch.compile(philox4x32, fullgraph=True, dynamic=True)
    words = compiled((c, c, c, c), (3, 4))
    expected = philox4x32((c, c, c, c), (3, 4))
    assert all(torch.equal(w, e) for w, e in zip(words, expected, strict=True))


def test_vmap_looks_through_it():
    c = torch.arange(6).view(2, 3)
    words = torch.func.vmap(lambda row: philox4x32((row, row, row, row), (3, 4)))(c)
    expected = philox4x32((c, c, c, c), (3, 4))
    assert all(torch.equal(w, e) for w, e in zip(words, expected, strict=True))


def test_errors_say_what_was_given():
    word, short = torch.tensor(1), torch.tensor(1, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"counter must have dtype int64, got a int32"):
        philox4x32((word, word, short, word), (0, 0))
    with pytest.raises(TypeError, match=r"counter must be a torch\.Tensor, got int 3"):
        philox4x32((word, word, word, 3), (0, 0))
    with pytest.raises(TypeError, match="key must have dtype int64"):
        philox4x32((word, word, word, word), (0, short))
    with pytest.raises(ValueError, match="impl must be one of"):
        philox4x32((word, word, word, word), (0, 0), impl="fast")
    with pytest.raises(TypeError, match="words must have dtype int64"):
        random_below(short, 4)
    for bound in (0, -1, (1 << 31) + 1):
        with pytest.raises(ValueError, match=r"bound must be in 1\.\.2\*\*31"):
            random_below(word, bound)
