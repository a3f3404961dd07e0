# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The arrows of CONTRIBUTING.md hold, and importing the package costs nothing."""

import pkgutil
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import torchgeo_omnisat
from torchgeo_omnisat import models
from torchgeo_omnisat.__main__ import COMMANDS
from torchgeo_omnisat.registry import BUILDERS

ROOT = Path(__file__).parents[1]
PACKAGES = ['torchgeo_omnisat'] + [
    f'torchgeo_omnisat.{module.name}' for module in pkgutil.iter_modules(torchgeo_omnisat.__path__) if module.ispkg
]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which('lint-imports', path=str(Path(sys.executable).parent))
    assert program is not None
    return subprocess.run([program, '--no-cache'], cwd=folder, capture_output=True, text=True, check=False)


def test_imports_follow_the_arrows() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ('module', 'forbidden'),
    [
        ('modality', 'batch'),
        ('batch', 'datasets'),
        ('datasets/__init__', 'transforms'),
        ('models/__init__', 'batch'),
        ('losses/__init__', 'models'),
        ('datamodules/__init__', 'models'),
        ('tasks/__init__', 'datamodules'),
        ('tasks/__init__', 'datasets'),
        ('registry', 'plugin'),
        ('new', 'batch'),  # a module that is on no layer
    ],
)
def test_a_broken_arrow_is_seen(tmp_path: Path, module: str, forbidden: str) -> None:
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    package = shutil.copytree(ROOT / 'torchgeo_omnisat', tmp_path / 'torchgeo_omnisat')
    with (package / f'{module}.py').open('a') as file:
        file.write(f'\nimport torchgeo_omnisat.{forbidden}\n')
    assert lint_imports(tmp_path).returncode == 1


def test_import_is_light() -> None:
    code = 'import sys, torchgeo_omnisat; print({"torch", "numpy", "torchgeo", "lightning"} & set(sys.modules))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'set()'


@pytest.mark.parametrize('name', PACKAGES)
def test_every_public_name_is_there(name: str) -> None:
    package = import_module(name)
    for public in getattr(package, '__all__', ()):
        assert getattr(package, public) is not None
        assert public in dir(package)


def test_registry_names_every_builder() -> None:
    functions = {name for name in models.__all__ if name.islower()}
    assert set(BUILDERS) == functions - {'attention', 'register_encoder'}


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_a_main(name: str) -> None:
    assert callable(import_module(f'torchgeo_omnisat.commands.{name}').main)
