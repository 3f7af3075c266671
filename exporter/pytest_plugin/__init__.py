"""Makes locked bundles and parity of models items of a pytest run."""
