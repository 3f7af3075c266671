"""Token reduction put into a plain ViT, block by block, on the blocks' own graphs."""
