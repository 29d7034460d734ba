"""Where files of others lie that are not ours to publish.

The environment variable PSI4D_REFERENCE names another place.
"""

import os
from pathlib import Path

import pytest

REFERENCE = Path(os.environ.get("PSI4D_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference material is not here")
