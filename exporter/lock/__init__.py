"""Locks what a bundle is and how far it is from its reference, and checks bundles against that."""
