"""Makes virtual environments from nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a tokexport of its own."""

    folder: Path

    def python(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs its Python, away from the checkout, with warnings as errors."""
        return subprocess.run(
            [self.folder / "bin" / "python", "-I", "-W", "error", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def tokexport(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs its tokexport command."""
        return self.python(self.folder / "bin" / "tokexport", *arguments)

    def install(self, *requirements: str | Path) -> None:
        """Installs into it with pip and the versions of constraints.txt."""
        pip: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.folder / "bin" / "python",
        ]
        pip += ["-qq", "--disable-pip-version-check", "install"]
        result = subprocess.run(
            [*pip, "-c", ROOT / "constraints.txt", *requirements],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr

    def has(self, module: str) -> bool:
        """Whether a module can be found in it."""
        result = self.python("-c", f"import importlib.util as u; print(u.find_spec({module!r}))")
        assert result.returncode == 0, result.stderr
        return result.stdout.strip() != "None"


def new_environment(folder: Path) -> Environment:
    """Makes an environment without a package in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return Environment(folder)
