"""Tokens: extraction by a frozen backbone, the store on disk, and the order in which training reads it."""

from cytosae.tokens._extract import encode_images, extract_tokens, load_images
from cytosae.tokens._order import TokenOrder
from cytosae.tokens._store import KIND, VERSION, TokenStore

__all__ = ["KIND", "VERSION", "TokenOrder", "TokenStore", "encode_images", "extract_tokens", "load_images"]
