"""Draw the pictures of the documentation from the demo's run, in a real browser.

Usage: ``make demo``, then ``python -m pip install playwright`` and ``python docs/pictures.py`` (wants a Chromium on the path).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).parent
RUN = DOCS.parent / "runs" / "demo"
IMAGES = DOCS / "images"

#: picture -> what it shows of the page
PARTS = {
    "quality": "#quality",
    "landscape": "#landscape",
    "cell": "#cell .cell:nth-of-type(2)",
    "marrow": "#marrow",
    "heatmap": "#patients .plot",
}


def main() -> None:
    """Write every picture, small enough for a repository."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium or not (RUN / "report.html").exists():
        sys.exit("pictures: wants a Chromium on the path and runs/demo (make demo)")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1240, "height": 900})
        page.goto((RUN / "report.html").as_uri())
        page.add_style_tag(content="nav { display: none }")
        save(page.screenshot(clip={"x": 0, "y": 0, "width": 1240, "height": 560}), "report-top")
        for name, selector in PARTS.items():
            save(page.locator(selector).first.screenshot(), name)
        cards = page.locator("#gallery .card")
        names = [cards.nth(i).locator(".id").inner_text() for i in range(cards.count())]
        eosinophil = next(i for i, n in enumerate(names) if "for eosinophil" in n)
        save(cards.nth(eosinophil).screenshot(), "card")
        background = page.locator("#gallery .card", has_text="Mostly off the cell").last
        save(background.screenshot(), "background")
        save(page.locator("#cell .part").first.screenshot(), "words")
        save(page.locator("#patients .card .hit").first.screenshot(), "differential")
        save(page.locator("#patients .reasons").screenshot(), "one-patient")
        strips(page, names)
        fit = browser.new_page(viewport={"width": 1100, "height": 1180})
        fit.goto((RUN / "sae" / "fit.html").as_uri())
        save(fit.screenshot(), "fit-page")
        phone = browser.new_page(viewport={"width": 390, "height": 844}, device_scale_factor=2)
        phone.goto((RUN / "report.html").as_uri())
        save(phone.screenshot(), "report-phone")
        browser.close()
    explained()


def strips(page: Any, names: list[str]) -> None:
    """The README's picture: the exemplars of four concepts below each other."""
    parts = []
    cards = page.locator("#gallery .card")
    for label in ("eosinophil", "monocyte", "erythroblast", "neutrophil"):
        i = next(i for i, n in enumerate(names) if n.endswith(f"for {label}"))
        parts.append(png(cards.nth(i).locator(".strip").screenshot()))
    width = max(p.width for p in parts)
    whole = Image.new("RGB", (width, sum(p.height + 8 for p in parts)), "white")
    y = 0
    for part in parts:
        whole.paste(part, (0, y))
        y += part.height + 8
    whole.save(IMAGES / "readme.jpg", quality=88, subsampling=0, optimize=True)


def explained() -> None:
    """The picture that `cytosae explain` makes of one bundled eosinophil."""
    from cytosae.cells import ImageParquet, bundled_path

    bundle = ImageParquet(bundled_path())
    row = int((bundle.frame()["label"] == "eosinophil").to_numpy().nonzero()[0][2])
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "my_cell.jpg"
        image.write_bytes(bundle.read(row)[0] or b"")
        command = [sys.executable, "-m", "cytosae", "explain", str(image), "--sae", str(RUN / "sae"),
                   "--index", str(RUN / "index"), "--out", str(Path(folder) / "out")]  # fmt: skip
        subprocess.run(command, check=True)
        picture = next((Path(folder) / "out").glob("*.png"))
        save(picture.read_bytes(), "explain")


def png(data: bytes) -> Image.Image:
    """A picture from PNG bytes."""
    import io

    return Image.open(io.BytesIO(data)).convert("RGB")


def save(data: bytes, name: str) -> None:
    """Write a picture at most 1,240 pixels wide, as JPEG."""
    image = png(data)
    if image.width > 1240:
        image = image.resize((1240, round(image.height * 1240 / image.width)), Image.Resampling.LANCZOS)
    image.save(IMAGES / f"{name}.jpg", quality=88, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
