"""Tokens: extraction by a frozen backbone, the store on disk, and the order in which training reads it."""

from cytosae.tokens._balance import balanced
from cytosae.tokens._extract import encode_images, extract_tokens, load_images
from cytosae.tokens._kinds import parse_keep, sample_patches
from cytosae.tokens._order import TokenOrder
from cytosae.tokens._store import KIND, VERSION, TokenStore
from cytosae.tokens._stream import MEMORY_LIMIT, TokenStream
from cytosae.tokens._views import turned

__all__ = [
    "KIND",
    "MEMORY_LIMIT",
    "VERSION",
    "TokenOrder",
    "TokenStore",
    "TokenStream",
    "balanced",
    "encode_images",
    "extract_tokens",
    "load_images",
    "parse_keep",
    "sample_patches",
    "turned",
]
