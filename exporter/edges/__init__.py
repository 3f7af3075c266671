"""Compares an artifact with eager on inputs at the edges, beside the samples."""
