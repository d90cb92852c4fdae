"""Weight formats of other programs: imported without executing anything in them, and exported to."""

from cytosae.sae.formats._export import TARGETS, export_sae
from cytosae.sae.formats._import import Belonging, import_sae, read_foreign

__all__ = ["TARGETS", "Belonging", "export_sae", "import_sae", "read_foreign"]
