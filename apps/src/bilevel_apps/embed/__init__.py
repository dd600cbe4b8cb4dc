"""Look at a representation: pairs, neighbours, a map, and figures of how far apart classes are."""

from bilevel_apps.embed.embed import Embedding, EmbedRequest, embed_run

__all__ = ["EmbedRequest", "Embedding", "embed_run"]
