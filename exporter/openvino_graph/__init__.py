"""Changes an OpenVINO graph before it is saved: decisions stay in float32, rows come first."""
