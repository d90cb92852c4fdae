"""``cytosae backbones``."""

from __future__ import annotations

from cytosae.cli._common import done, verb


@verb("backbones", compute=False)
def command() -> None:
    """List the backbones: size, licence, where the weights come from, their sha256, and whether they are present."""
    from cytosae.backbones import BACKBONES

    for info in BACKBONES.values():
        if info.present is None:
            state = "from the hub's cache" if info.name == "hf-hub" else "your file (--weights)"
        else:
            state = "present" if info.present() else "not installed"
        done(f"{info.name:15} {info.sizes}; {state}")
        done(f"{'':15} {info.licence}")
        done(f"{'':15} {info.origin}")
        for file, sha256 in info.sha256.items() or ([] if info.present else [("", "unknown")]):
            done(f"{'':15} sha256 {f'of {file} ' if file else ''}{sha256}")
