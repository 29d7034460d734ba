"""Stage inputs: the manifest of the user's portraits and clips, on which `ingest` depends, the frames that
the user has marked as bad, which `train` and `evaluate` leave out, and the imported synthesizers that a
training begins with or is.

DVC runs it each time, so that files that came, went or changed are seen (pipeline/ingest/manifest.py). It
imports nothing that is slow to load.
"""

import sys

from pipeline.config.params import load_params
from pipeline.core.bad_frames import find_bad_frames, write_bad_frames
from pipeline.core.errors import UserError
from pipeline.core.imported import write_wanted
from pipeline.core.paths import BAD_FRAMES, INPUTS, MARKED, PUBLISHED_PSI, PUBLISHED_PSI3D, in_project
from pipeline.ingest.manifest import write_manifest


def main() -> None:
    params = load_params()
    write_manifest(params.ingest, INPUTS)
    write_bad_frames(BAD_FRAMES, find_bad_frames(in_project(MARKED)))
    folder = in_project(params.pretrain.official)
    for section, out in ((params.train_psi3d, PUBLISHED_PSI3D), (params.train, PUBLISHED_PSI)):
        write_wanted(out, folder, "official" in (section.source, section.init))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"inputs: {error}")
