"""Changes an OpenVINO graph before it is saved: what decides stays exact, rows come first."""
