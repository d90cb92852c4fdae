"""Trees of real cells under the names of each layout, made of the bundled images; and the data pack, where present."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytosae.cells import ImageParquet, bundled_path


@pytest.fixture(scope="session")
def real() -> list[bytes]:
    """The JPEG bytes of 120 bundled cells."""
    store = ImageParquet(bundled_path())
    return [store.read(i)[0] or b"" for i in range(120)]


@pytest.fixture(scope="session")
def pixels(real: list[bytes]) -> list[np.ndarray]:
    """The same cells as uint8 ``[224, 224, 3]``."""
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in real]


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Pixels as the bytes of an image file of some kind."""

    def call(array: np.ndarray, kind: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, kind, **options)
        return buffer.getvalue()

    return call


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Write files below a folder; gives the folder."""

    def call(files: dict[str, bytes]) -> Path:
        root = tmp_path / "tree"
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return root

    return call


@pytest.fixture(scope="session")
def pack() -> Path:
    """The data pack; the test is skipped where it is absent."""
    path = Path(os.environ.get("CYTOSAE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (path / "hard" / "notes.csv").is_file():
        pytest.skip("the data pack is not beside the repository (CYTOSAE_DATA)")
    return path
