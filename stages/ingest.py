"""Stage ingest: folders of portraits and clips, or generated ones, as tables and shards of aligned faces."""

from pipeline.config.params import Params
from pipeline.core.paths import GENERATED, INGEST, INPUTS, TRUTH
from pipeline.ingest.manifest import source_folders
from pipeline.ingest.worker import ingest
from pipeline.stage import run_stage, write_metrics
from pipeline.synthetic.generator import generate

# The manifest stands for the folders of the user, which params.yaml names.
READS = (INPUTS,)


def main(params: Params) -> None:
    settings = params.ingest
    portraits, clips = source_folders(settings)
    if settings.source == "generated":
        generate(params, GENERATED, TRUTH)
    else:
        # Outs of the stage have to be there; they stay empty when the files are the user's.
        for folder in (GENERATED / "portraits", GENERATED / "clips", TRUTH):
            folder.mkdir(parents=True, exist_ok=True)
    metrics = ingest(settings, params.networks.image, params.machine, portraits, clips, INGEST)
    write_metrics("ingest", metrics)


if __name__ == "__main__":
    run_stage("ingest", main)
