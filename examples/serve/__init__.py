"""Serves a bundle over HTTP: pictures to classes, arrays to outputs."""
