"""What several tests of the engine compare with."""

import pytest

from tests.support import killing


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    """The checksums of the shards that `killing.drive` makes when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    killing.drive(folder, 0)
    return killing.shards(folder)
