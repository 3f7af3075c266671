"""Packages bundles in the formats that servers, registries and archives take; needs no torch."""
