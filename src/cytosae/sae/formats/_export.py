"""From an SAE folder to where other people are."""

from __future__ import annotations

from pathlib import Path

from cytosae._errors import UsageError, nearest
from cytosae.sae._io import KIND, VERSION, load_sae
from cytosae.sae._model import SparseAutoencoder
from cytosae.sae.formats._hugging_face import write_hugging_face
from cytosae.sae.formats._saelens import write_saelens
from cytosae.storage import commit_folder

#: Where to, and the kind of artifact that the folder then is.
TARGETS = {"saelens": "SAELens folder", "huggingface": KIND}


def export_sae(
    sae: SparseAutoencoder | Path | str, out: Path | str, to: str, *, title: str | None = None, licence: str = "unknown"
) -> None:
    """Write a dictionary in another program's layout; the folder appears whole or not at all.

    Parameters
    ----------
    sae
        The dictionary or its folder.
    out
        The folder to write.
    to
        ``saelens`` or ``huggingface``.
    title, licence
        Of the model card; the title is the folder's name where None.

    Raises
    ------
    UsageError
        An unknown target or licence, or `out` is the dictionary itself.
    """
    out = Path(out)
    if to not in TARGETS:
        raise UsageError(f"There is no export to {to!r}{nearest(to, TARGETS)}.")
    if not isinstance(sae, SparseAutoencoder):
        if out.exists() and Path(sae).exists() and out.samefile(sae):
            raise UsageError(f"{out} is the dictionary itself; choose another --out.")
        sae = load_sae(sae)
    inputs = {"sae": sae.hash} if sae.hash else {}
    config = {"to": to, **({"title": title, "licence": licence} if to == "huggingface" else {})}
    with commit_folder(out, kind=TARGETS[to], version=VERSION, inputs=inputs, config=config) as (folder, _):
        if to == "saelens":
            write_saelens(folder, sae)
        else:
            write_hugging_face(folder, sae, title=title or out.name, licence=licence)
