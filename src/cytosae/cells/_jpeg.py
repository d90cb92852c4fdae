"""What the markers of a JPEG file say before a pixel is decoded: kind, colours, sampling, quality, completeness."""

from __future__ import annotations

from dataclasses import dataclass

END = b"\xff\xd9"

#: Sum of the standard luminance table (ITU T.81, table K.1), which quality 50 uses as it is.
_STANDARD_SUM = 3688

#: Eight bytes of ones (written FF 00) behind the picture data: as many as the decoder fills its register with. Ones are no
#: Huffman code, so they cannot pass for more than a block or two.
_PADDING = b"\xff\0" * 8


class BrokenJpegError(Exception):
    """Why the markers of a JPEG file cannot be those of a whole picture."""


@dataclass(frozen=True)
class JpegHeader:
    """The markers of a JPEG file up to its first scan.

    Attributes
    ----------
    components
        Number of colour components (1 grey, 3 colour, 4 CMYK).
    one_scan
        All data lies in one sequential Huffman scan (baseline), so that its completeness can be proved.
    sampling
        ``4:4:4``, ``4:2:0`` ... for colour, ``""`` otherwise.
    quality
        Estimated quality, 1 to 100, from the luminance table.
    has_exif, has_adobe
        An EXIF or an Adobe segment is present.
    scan
        Byte offset of the first start-of-scan marker.
    """

    components: int
    one_scan: bool
    sampling: str
    quality: int
    has_exif: bool
    has_adobe: bool
    scan: int

    def __str__(self) -> str:
        kind = "JPEG" if self.one_scan else "JPEG progressive"
        return " ".join(part for part in (kind, f"q{self.quality}", self.sampling) if part)


def parse_jpeg(data: bytes) -> JpegHeader:
    """Read the markers up to the first scan.

    Raises
    ------
    BrokenJpegError
        The markers end before a scan starts, or contradict each other.
    """
    position, sof, tables = 2, b"", 0
    kind, quality, exif, adobe = 0, 0, False, False
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise BrokenJpegError("a marker is missing")
        marker = data[position + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            break
        if marker == 0xDA:
            if not sof:
                raise BrokenJpegError("picture data come before the picture's size")
            one = kind in (0xC0, 0xC1) and bool(body) and body[0] == sof[5]
            return JpegHeader(sof[5], one, _sampling(sof), quality, exif, adobe, position)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(body) < 6 + 3 * (body[5] if len(body) > 5 else 1):
                raise BrokenJpegError("the picture's size is cut")
            kind, sof = marker, body
        elif marker == 0xDB and not tables and len(body) >= 65:
            tables += 1
            wide = body[0] >> 4
            values = [int.from_bytes(body[1 + 2 * i : 3 + 2 * i], "big") for i in range(64)] if wide else body[1:65]
            quality = _quality(sum(values))
        elif marker == 0xE1 and body.startswith(b"Exif"):
            exif = True
        elif marker == 0xEE and body.startswith(b"Adobe"):
            adobe = True
        position += 2 + length
    raise BrokenJpegError("the file ends inside its header")


def provable(data: bytes, header: JpegHeader) -> bytes:
    """Bytes that decode exactly when the picture is whole.

    libjpeg fills up what is missing before an end marker with grey and only murmurs. So the end marker of a one-scan
    picture is replaced by a few bytes of ones: a whole picture needs nothing behind its data, a cut one runs dry and is
    refused by the decoder. Of a picture in several scans only the end marker can be checked.

    Raises
    ------
    BrokenJpegError
        There is no end marker.
    """
    end = data.find(END, header.scan) if header.one_scan else data.rfind(END, header.scan)
    if end < 0:
        raise BrokenJpegError("the file is cut short: its end marker is missing")
    return data[:end] + _PADDING if header.one_scan else data


def _quality(total: int) -> int:
    """The quality of the IJG scale whose luminance table has this sum."""
    scale = 100 * total / _STANDARD_SUM
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return int(min(100, max(1, round(quality))))


def _sampling(sof: bytes) -> str:
    if sof[5] != 3:
        return ""
    factors = [sof[7 + 3 * i] for i in range(3)]
    names = {0x11: "4:4:4", 0x21: "4:2:2", 0x22: "4:2:0", 0x41: "4:1:1", 0x12: "4:4:0"}
    return names.get(factors[0], "odd sampling") if factors[1:] == [0x11, 0x11] else "odd sampling"
