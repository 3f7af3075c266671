"""Distinguishes near-ties from errors: replays a stage with eager's decisions as inputs."""
