"""Finds the blocks of a plain ViT and puts a reduction method into them."""
