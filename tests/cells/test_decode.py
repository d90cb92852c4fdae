"""A picture is decoded whole and right, or refused with a reason."""

from __future__ import annotations

import contextlib
import csv
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cytosae.cells import UnreadableImageError, decode_image, read_resized
from cytosae.cells._bilinear import _Weights, _weights, resize_across, resize_down, resize_exact, resize_fast
from cytosae.cells._resize import decode_fast

Encode = Callable[..., bytes]


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"))


@pytest.mark.parametrize(("kind", "options"), [
    ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}), ("WEBP", {"lossless": True}),
])  # fmt: skip
def test_lossless_files_give_the_pixels_that_were_written(pixels, encode: Encode, kind, options) -> None:
    assert (decode_image(encode(pixels[0], kind, **options)).pixels == pixels[0]).all()


def test_sixteen_bit_colour_keeps_its_brightness(pixels) -> None:
    for extra in ({"compression": None}, {"compression": "lzw"}, {"compression": "zlib", "planarconfig": "separate"}):
        buffer, separate = io.BytesIO(), "planarconfig" in extra
        values = pixels[0].astype(np.uint16) * 257
        tifffile.imwrite(buffer, values.transpose(2, 0, 1) if separate else values, photometric="rgb", **extra)
        found = decode_image(buffer.getvalue())
        assert found.mode == "RGB;16"
        assert np.abs(found.pixels.astype(int) - pixels[0]).max() <= 2


def test_eight_bit_values_in_a_sixteen_bit_file_do_not_turn_black(pixels) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels[0].astype(np.uint16), photometric="rgb")
    assert (decode_image(buffer.getvalue()).pixels == pixels[0]).all()


def test_a_stated_twelve_bit_range_is_used(pixels) -> None:
    buffer = io.BytesIO()
    tag = (281, "H", 1, 4095, True)
    tifffile.imwrite(buffer, (grey(pixels[0]) * (4095 / 255)).round().astype(np.uint16), extratags=[tag])
    assert np.abs(decode_image(buffer.getvalue()).pixels[:, :, 0].astype(int) - grey(pixels[0])).max() <= 1


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 257.0])
def test_float_pictures_keep_their_brightness_in_any_range(pixels, scale) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, (pixels[0] * scale).astype(np.float32), photometric="rgb")
    assert np.abs(decode_image(buffer.getvalue()).pixels.astype(int) - pixels[0]).max() <= 1


def test_inverted_grey_is_not_a_negative(pixels) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, (255 - grey(pixels[0])).astype(np.uint16) * 257, photometric="miniswhite")
    assert np.abs(decode_image(buffer.getvalue()).pixels[:, :, 0].astype(int) - grey(pixels[0])).max() <= 1


def test_pixels_that_are_no_numbers_are_refused() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.full((8, 8), np.nan, np.float32))
    with pytest.raises(UnreadableImageError, match="not numbers"):
        decode_image(buffer.getvalue())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_stands_upright(pixels, encode: Encode, orientation) -> None:
    marked = pixels[0].copy()[:, :160]
    turned = {1: marked, 2: marked[:, ::-1], 3: marked[::-1, ::-1], 4: marked[::-1], 5: marked.transpose(1, 0, 2),
              6: np.rot90(marked), 7: np.rot90(marked.transpose(1, 0, 2), 2), 8: np.rot90(marked, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    for kind, options, least in (("JPEG", {"quality": 95, "subsampling": 0}, 35), ("PNG", {}, 99), ("TIFF", {}, 99)):
        data = encode(np.ascontiguousarray(turned[orientation]), kind, exif=exif.tobytes(), **options)
        found = decode_image(data).pixels
        assert found.shape == marked.shape, (kind, orientation)
        assert psnr(found, marked) > least, (kind, orientation)
        assert (decode_fast(data) == found).all()


def test_sixteen_bit_tiff_honours_its_orientation(pixels) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.rot90(pixels[0]).astype(np.uint16) * 257, photometric="rgb",
                     extratags=[(274, "H", 1, 6, True)])  # fmt: skip
    assert np.abs(decode_image(buffer.getvalue()).pixels.astype(int) - pixels[0]).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.99, 0.9, 0.4])
def test_a_cut_file_is_refused_never_half_decoded(pixels, encode: Encode, kind, share) -> None:
    for array in pixels[:20]:
        data = encode(array, kind)
        with pytest.raises(UnreadableImageError):
            decode_image(data[: int(len(data) * share)])
        with pytest.raises(UnreadableImageError):
            read_resized(data[: int(len(data) * share)])


def test_a_cut_jpeg_that_was_closed_again_is_refused(real: list[bytes]) -> None:
    for data in real:
        with pytest.raises(UnreadableImageError):
            decode_image(data[: int(len(data) * 0.99)] + b"\xff\xd9")
        with pytest.raises(UnreadableImageError):
            decode_fast(data[: int(len(data) * 0.5)] + b"\xff\xd9")


def test_a_whole_jpeg_is_never_refused(real: list[bytes]) -> None:
    for data in real:
        assert (decode_image(data).pixels == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
        assert (decode_image(data + b"\0\0camera trailer\xff\xd9").pixels == decode_image(data).pixels).all()


def test_a_flipped_bit_in_a_png_is_noticed(pixels, encode: Encode) -> None:
    data = bytearray(encode(pixels[0], "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnreadableImageError, match="checksum"):
        decode_image(bytes(data))


def test_a_bomb_is_refused_before_it_unpacks(encode: Encode) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    png = head + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000, 9)) + chunk(b"IEND", b"")
    with pytest.raises(UnreadableImageError, match="too large"):
        decode_image(png)
    deep = io.BytesIO()
    tifffile.imwrite(deep, np.zeros((8, 8), np.float32))
    data = bytearray(deep.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        for name in ("ImageWidth", "ImageLength"):
            tag = file.pages.first.tags[name]
            data[tag.valueoffset : tag.valueoffset + 2] = struct.pack("<H", 65535)
    with pytest.raises(UnreadableImageError, match=r"too large|decoded whole"):
        decode_image(bytes(data))


def test_noise_never_escapes_as_another_error(real: list[bytes], pixels, encode: Encode) -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "GIF"):
        data = np.frombuffer(encode(pixels[0][:64, :64], kind), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[random.integers(0, min(len(data), 400), 4)] = random.integers(0, 256, 4)
            for read in (lambda b: decode_image(b).pixels, decode_fast):
                with contextlib.suppress(UnreadableImageError):
                    assert read(damaged.tobytes()).dtype == np.uint8


def test_the_fast_path_has_the_pixels_of_the_published_one(real: list[bytes], pixels, encode: Encode) -> None:
    for data, array in zip(real[:60], pixels, strict=False):
        for file in (data, encode(array, "TIFF", compression="tiff_lzw"), encode(array[:200, :180], "PNG")):
            published = np.asarray(
                Image.open(io.BytesIO(file)).convert("RGB").resize((192, 192), Image.Resampling.BILINEAR)
            )
            assert (read_resized(file, 192, exact=True) == published).all()
            assert np.abs(read_resized(file, 192).astype(int) - published).max() <= 1
    assert (resize_exact(pixels[0], 224) == pixels[0]).all()


#: Sides of square results, and heights and widths: odd, tiny, halves and thirds (ties everywhere), up and down.
SIDES = (1, 7, 56, 112, 224, 225, 518)
EXTENTS = (1, 2, 3, 31, 64, 111, 112, 168, 223, 224, 225, 250, 252, 288, 336, 360, 363, 400, 448, 449, 896, 1001)


def _patterns(height: int, width: int, real_cell: np.ndarray) -> list[np.ndarray]:
    """Pixels that round badly: noise, black and white noise, stripes, neighbours by one grey level; and a cell."""
    random = np.random.default_rng(height * 10_007 + width)
    y, x = np.indices((height, width))[:, :, :, None]
    stripes = [((x + y + np.arange(3)) % 2), (x // 2 + np.arange(3)) % 2, (y // 2 + np.arange(3)) % 2]
    cell = np.asarray(Image.fromarray(real_cell).resize((width, height), Image.Resampling.BICUBIC))
    noise = random.integers(0, 256, (height, width, 3))
    found = [noise, (noise > 127) * 255, 127 + (noise > 127), *(s * 255 for s in stripes), 254 + stripes[0], cell]
    return [f.astype(np.uint8) for f in found]


@pytest.mark.parametrize("side", SIDES)
def test_no_fast_pixel_is_ever_two_grey_levels_off(pixels, side) -> None:
    heights = np.random.default_rng(side).permutation(EXTENTS)
    for height, width in zip((*heights, *EXTENTS), (*EXTENTS, *EXTENTS), strict=True):
        for array in _patterns(height, width, pixels[width % len(pixels)]):
            gap = np.abs(resize_fast(array, side).astype(np.int16) - resize_exact(array, side))
            assert gap.max() <= 1, (height, width, side)


def test_the_bound_holds_because_rows_are_off_by_at_most_one_and_columns_are_exact(pixels) -> None:
    for extent in EXTENTS:
        for array in _patterns(extent, extent, pixels[0]):
            across = np.asarray(Image.fromarray(array).resize((97, extent), Image.Resampling.BILINEAR))
            assert np.abs(resize_across(array, 97).astype(np.int16) - across).max() <= 1
            down = np.asarray(Image.fromarray(array).resize((extent, 97), Image.Resampling.BILINEAR))
            assert (resize_down(array, 97) == down).all()


def test_sums_that_lie_within_their_weights_excess_from_a_step_are_doubted() -> None:
    weights = _weights(363, 224)
    y = int(np.flatnonzero(weights.excess)[0])
    excess = int(weights.excess[y])
    assert weights.taps[y].sum() == (1 << 22) + excess
    sums = np.full((224, 7), 1 << 21, np.int32)
    sums[y] = (100 << 22) + np.array([-excess - 1, -excess, -1, 0, excess - 1, excess, 1 << 21])
    row, place = weights.doubtful(sums)
    assert set(row.tolist()) == {y}
    assert set(place.tolist()) == {1, 2, 3, 4}


def test_a_doubted_value_is_computed_as_pillow_does(pixels, monkeypatch) -> None:
    every = [np.indices((224, 3 * 224)).reshape(2, -1)]
    monkeypatch.setattr(_Weights, "doubtful", lambda self, sums: every[0])
    for height, width in ((363, 360), (288, 287), (61, 448), (1, 2), (900, 700)):
        for array in _patterns(height, width, pixels[0]):
            assert (resize_fast(array, 224) == resize_exact(array, 224)).all(), (height, width)


def test_pixels_that_may_not_be_written_or_lie_scattered_are_resized_alike(pixels) -> None:
    array = np.frombuffer(pixels[0].tobytes(), np.uint8).reshape(pixels[0].shape)
    expected = resize_fast(pixels[0], 100)
    assert (resize_fast(array, 100) == expected).all()
    assert (resize_fast(np.asfortranarray(array), 100) == expected).all()
    assert resize_fast(array, 224) is not array


@pytest.mark.shared
def test_the_truth_table_of_awkward_files_holds(pack: Path) -> None:
    source = decode_image((pack / "acevedo_pbc/basophil/BA_151210.jpg").read_bytes()).pixels

    compared = 0
    for row in csv.DictReader((pack / "hard" / "notes.csv").open(encoding="utf-8")):
        data = (pack / "hard" / row["file"]).read_bytes()
        if row["readable"] == "no":
            with pytest.raises(UnreadableImageError):
                decode_image(data)
        elif row["readable"] == "yes":
            found = decode_image(data)
            with Image.open(io.BytesIO(data)) as image:
                assert found.pixels.size == image.width * image.height * 3
            if row["kind"] == "derived" and row["file"] in EXPECTED:
                expected, least = EXPECTED[row["file"]](source)
                assert found.pixels.shape == expected.shape, row["file"]
                assert (
                    psnr(found.pixels, expected) >= least or np.abs(found.pixels.astype(int) - expected).max() <= 2
                ), row["file"]
                compared += 1
    assert compared == len(EXPECTED)


def _rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def _resized(source: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BICUBIC))


def _half_white(source: np.ndarray) -> np.ndarray:
    small = _resized(source, 128, 128).copy()
    small[:, :64] = 255
    return small


#: Derived file -> its source as it must come out, and the least likeness (99: the two-grey-level rule).
EXPECTED: dict[str, Callable[[np.ndarray], tuple[np.ndarray, float]]] = {
    "gray_L.jpg": lambda s: (_rgb(grey(s)), 30),
    "palette.png": lambda s: (s, 30),
    "cmyk.jpg": lambda s: (s, 30),
    "progressive.jpg": lambda s: (s, 30),
    "exif_rotated.jpg": lambda s: (np.rot90(s, 3), 30),
    "gray_LA.png": lambda s: (_rgb(_resized(grey(s), 128, 128)), 99),
    "gray_16bit.png": lambda s: (_rgb(_resized(grey(s), 128, 128)), 99),
    "gray_float32.tif": lambda s: (_rgb(_resized(grey(s), 128, 128)), 99),
    "rgba_400.tiff": lambda s: (_resized(s, 400, 400), 99),
    "rgba_transparent.png": lambda s: (_half_white(s), 99),
    "two_pages.tif": lambda s: (_resized(s, 96, 96), 99),
    "really_a_png.jpg": lambda s: (_resized(s, 120, 120), 99),
    "wide_1000x40.png": lambda s: (_resized(s, 1000, 40), 99),
    "tiny_7x7.png": lambda s: (_resized(s, 7, 7), 99),
    "one_pixel.png": lambda s: (_resized(s, 1, 1), 99),
    "bilevel.png": lambda s: (_rgb(np.asarray(Image.fromarray(s).convert("1").convert("L"))), 99),
    "constant_white.png": lambda s: (np.full((128, 128, 3), 255, np.uint8), 99),
}
