"""``cytosae import``: a group, so that every legacy artifact is a verb of its own."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae._errors import UsageError, nearest
from cytosae.cli._common import done, verb
from cytosae.cli.import_statistics import command as statistics


class _Import(click.Group):
    """A group that names the nearest verb."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UsageError(f"There is no verb 'import {args[0]}'{nearest(args[0], self.commands)}.")
        return super().resolve_command(ctx, args)


@click.group("import", cls=_Import)
def command() -> None:
    """Make artifacts of other programs' files. Nothing in them is executed."""


@verb("sae", compute=False, out="The SAE folder to write.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tokens", type=click.Path(path_type=Path),
              help="A token store that it is for: width and block are compared, and its backbone is recorded.")  # fmt: skip
@click.option(
    "--backbone", help="The backbone that it is for, where there are no tokens yet (see 'cytosae backbones')."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weight file of that backbone.")
@click.option("--layer", metavar="BLOCK[,BLOCK...]",
              help="Block of the backbone, where the file does not say it or is overruled; several as 5x4,8x2,10x1.")  # fmt: skip
def sae(
    file: Path, tokens: Path | None, backbone: str | None, weights: Path | None, layer: str | None, out: Path
) -> None:
    """Make an SAE folder of FILE.

    FILE is a checkpoint of the published CytoSAE or PatchSAE programs (.pt), a folder of SAELens, a dictionary_learning
    ae.pt or its folder, or a Hugging Face folder that 'cytosae export' wrote. Values stay as trained; what cannot be known
    is null.
    """
    from cytosae.backbones import layer_text, parse_layer
    from cytosae.sae.formats import Belonging, import_sae

    if tokens is not None and backbone is not None:
        raise UsageError("Give --tokens or --backbone, not both; the tokens say their backbone.")
    if weights is not None and backbone is None:
        raise UsageError("--weights is of a backbone; name it with --backbone.")
    belongs, blocks = None, None if layer is None else parse_layer(layer)
    if not isinstance(blocks, int | None) and backbone is None and any(isinstance(part, int) for part in blocks):
        raise UsageError(
            "Several blocks have factors; give them all (--layer 5x4,8x2,10x1), or the backbone with --backbone."
        )
    if tokens is not None:
        from cytosae.tokens import TokenStore

        belongs = Belonging.of_tokens(TokenStore(tokens))
    elif backbone is not None:
        from cytosae.backbones import load_backbone
        from cytosae.tokens import balanced

        network = load_backbone(backbone, weights=weights)
        blocks = None if blocks is None else balanced(network, blocks)  # as 'cytosae tokens' would name them
        belongs = Belonging.of_backbone(network, blocks)
    found = import_sae(file, out, belongs=belongs, layer=blocks)
    info = found.info
    activation = f"{found.activation} {found.k}" if found.k else found.activation
    whose = f"{info['backbone']['name']}" if info["backbone"] else "not known (say it with --tokens or --backbone)"
    changes = "".join(f"; {change}" for change in info["imported"]["changes"])
    done(
        f"Wrote {out}: {found.n_latents:,} latents of {found.d_in} numbers, {activation}, from {info['imported']['format']}"
        f"{changes}; backbone {whose}, {layer_text(info['layer'])}."
    )


command.add_command(sae)
command.add_command(statistics)
