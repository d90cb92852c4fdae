"""``cytosae explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cytosae._errors import UsageError
from cytosae.cli._common import done, verb


@verb("explain", out="The folder for the pictures and explain.json.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--sae", type=click.Path(path_type=Path), required=True, help="The dictionary (an SAE folder).")
@click.option(
    "--index",
    type=click.Path(path_type=Path),
    help="A concept index: ranks by rarity too, and says what is known of each concept.",
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weight file of the backbone, where it came from one.")
@click.option("--concepts", type=click.IntRange(1, 64), default=7, show_default=True, help="Concepts an image.")
def command(
    images: tuple[Path, ...],
    sae: Path,
    index: Path | None,
    weights: Path | None,
    concepts: int,
    out: Path,
    device: str,
    seed: int,
) -> None:
    """Show which concepts each of IMAGES carries, and where: one picture an image, and explain.json."""
    from cytosae._progress import track
    from cytosae.concepts import ConceptIndex, backbone_of, explain, names_path
    from cytosae.reports import save_explanation
    from cytosae.sae import load_sae
    from cytosae.storage import artifact_hash, commit_folder, hash_file

    dictionary = load_sae(sae, device=device)
    known = ConceptIndex(index) if index else None
    if known and known.manifest["inputs"].get("sae") not in (None, dictionary.hash):
        raise UsageError(f"{index} is not an index of {sae}; give the dictionary it was made with.")
    backbone, layer = backbone_of(dictionary, device, weights)
    records: list[dict[str, Any]] = []
    inputs = {"sae": dictionary.hash, **({"index": known.hash} if known else {})}
    if known and names_path(known).exists():
        inputs["names"] = artifact_hash(names_path(known))
    with commit_folder(out, kind="explanations", version=1, inputs=inputs, config={"concepts": concepts}) as (
        folder,
        extra,
    ):
        for number, image in enumerate(track(images, len(images), "explain", "images")):
            found = explain(image, dictionary, backbone, layer=layer, index=known, n_concepts=concepts)
            name = f"{number:03d}-{image.stem}.png"
            save_explanation(found, folder / name)
            table = found.concepts.astype(object).where(found.concepts.notna(), None)
            records.append({
                "image": str(image), "sha256": hash_file(image), "picture": name, "codes_shown": found.codes_shown,
                "concepts": [
                    {**{k: _plain(v) for k, v in row.items()}, "map": found.maps[i].round(5).tolist()}
                    for i, row in enumerate(table.to_dict("records"))
                ],
            })  # fmt: skip
        _write(
            folder / "explain.json", {"notice": "Research use only.", "grid": list(backbone.grid), "images": records}
        )
        extra["n_images"] = len(records)
    done(f"Wrote {out}: {len(records)} pictures and explain.json.")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _write(path: Path, value: Any) -> None:
    import json

    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
