"""``cytosae backbones``."""

from __future__ import annotations

from cytosae.cli._common import done, verb


@verb("backbones", compute=False)
def command() -> None:
    """List the backbones: width, size, licence, where the weights come from, and whether they are present."""
    from cytosae.backbones import BACKBONES

    for info in BACKBONES.values():
        state = "present" if info.present() else "not installed"
        done(f"{info.name:12} {info.d_in} wide, {info.parameters} M parameters, {state}")
        done(f"{'':12} {info.licence}")
        done(f"{'':12} {info.origin}")
