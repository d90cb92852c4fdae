"""Draw the pictures of the documentation from the demo's run, in a real browser; and those of concepts on real data sets.

Usage: ``make demo``, then ``python -m pip install playwright`` and ``python docs/pictures.py`` (wants a Chromium on the path).

``python docs/pictures.py concepts FOLDER`` draws compare, atlas and maps instead (no browser). FOLDER is what the commands of
``docs/compare.md`` and ``docs/atlas.md`` make.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from cytosae import ConceptIndex, TokenStore, concept_map, load_sae, read_cells
from cytosae.cells import ImageReader, decode_image
from cytosae.concepts import draw_maps

DOCS = Path(__file__).parent
RUN = DOCS.parent / "runs" / "demo"
IMAGES = DOCS / "images"

#: Data sets of the pictures of concepts, by the names of their files.
SETS = ("blood", "marrow", "camera")
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


def concepts(folder: Path) -> None:
    """The pictures of compare, atlas and maps."""
    for name in sorted(path.name for path in folder.glob("compare-*")):
        save((folder / name / "compare.png").read_bytes(), name)
    save((folder / "atlas" / "atlas.png").read_bytes(), "atlas")
    sides = {name: Side(folder, name) for name in SETS if (folder / f"index-{name}").exists()}
    latent = shared_concept([side.index for side in sides.values()], "eos")
    shown: list[tuple[Any, Any, str]] = []
    for name, side in sides.items():
        of_side = [(side.pixels(c), side.map(c, latent), f"{name}: {title}") for c, title in side.best(latent, 4)]
        if name == "blood":
            for way in ("nearest", "smooth"):
                save_figure(draw_maps(*zip(*of_side, strict=True), way=way), f"maps-{way}")
        shown += of_side[:3]
    save_figure(draw_maps(*zip(*shown, strict=True), way="smooth"), "compare-exemplars")
    print(f"concept {latent}: ", *(f"{n} {s.index.concepts.loc[latent].to_dict()}" for n, s in sides.items()), sep="\n")


class Side:
    """One data set of the folder: table, tokens, index."""

    def __init__(self, folder: Path, name: str) -> None:
        """Read the parts of `name`."""
        self.cells, self.index = read_cells(folder / f"{name}.parquet"), ConceptIndex(folder / f"index-{name}")
        self.store, self.sae = TokenStore(folder / f"tokens-{name}"), load_sae(folder / "sae")
        self.rows, self.reader = self.cells.frame.set_index("cell_id"), ImageReader(self.cells.root)

    def best(self, latent: int, n: int) -> list[tuple[int, str]]:
        """The first exemplars shown: cell and label with value."""
        rows = self.index.exemplars_of(latent).head(n)
        return [(int(r.cell_id), f"{self.rows.loc[r.cell_id, 'label']}\n{r.value:.2f}") for r in rows.itertuples()]

    def pixels(self, cell_id: int) -> Any:
        """The decoded image."""
        row = self.rows.loc[cell_id]
        return decode_image(self.reader.read(row["image"], row["sha256"])).pixels

    def tokens(self, cell_id: int) -> Any:
        """Tokens of its patches."""
        return self.store.read(self.store.rows_of([cell_id]), kind="patch")[0].float()

    def map(self, cell_id: int, latent: int) -> Any:
        """Codes of one concept on its patches."""
        return concept_map(self.sae, self.tokens(cell_id), latent, self.store.grid)


def shared_concept(indices: list[ConceptIndex], label: str) -> int:
    """The concept, active in 20 cells of every set or more, whose exemplars are most of them of a label (by its first letters) in every set."""
    of_label = [
        i.concepts["top_label_share"]
        .where(i.concepts["top_label"].str.lower().str.startswith(label) & (i.concepts["n_cells_active"] >= 20), 0)
        .fillna(0)
        for i in indices
    ]
    first = indices[0].concepts.assign(share=sum(of_label))
    return int(first.sort_values(["share", "max_activation"], ascending=False, kind="stable")["latent"].iloc[0])


def save_figure(figure: Any, name: str) -> None:
    """Write a matplotlib figure as `save` does."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    save(buffer.getvalue(), name)


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
    if sys.argv[1:2] == ["concepts"] and len(sys.argv) == 3:
        concepts(Path(sys.argv[2]))
    elif len(sys.argv) == 1:
        main()
    else:
        sys.exit("pictures: say nothing, or: concepts FOLDER")
