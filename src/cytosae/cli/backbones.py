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
        done(f"{info.name:12} {info.sizes}; {state}")
        done(f"{'':12} {info.licence}")
        done(f"{'':12} {info.origin}")
        for file, sha256 in info.sha256.items() or [("", "unknown")]:
            done(f"{'':12} sha256 {f'of {file} ' if file else ''}{sha256}")
