"""Puts token reduction into the blocks of a plain ViT, on the blocks' own graphs."""
