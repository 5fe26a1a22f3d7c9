"""The package itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import context_encoder


def test_importing_the_package_is_light():
    code = (
        "import sys, context_encoder; assert 'torch' not in sys.modules; "
        "assert 'Inpainter' in dir(context_encoder)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = context_encoder.no_such_name
