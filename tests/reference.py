"""Where the reference material lies, for the tests that need it."""

from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference material is not here")
