import pytest
from helpers.torchvision_ops import define_torchvision_operators

define_torchvision_operators()


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every compile time fewer pairs: no test reads a time."""
    monkeypatch.setattr("tokexport.exporter.speed.SPEED_SECONDS", 0.5)
    monkeypatch.setattr("tokexport.exporter.speed.TRIAL_SECONDS", 0.2)
