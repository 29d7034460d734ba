"""Stage ingest: folders of portraits and clips, or generated ones, as tables and shards of aligned faces."""

from pathlib import Path

from pipeline.config.params import Params
from pipeline.ingest.worker import ingest
from pipeline.stage import run_stage, write_metrics
from pipeline.synthetic.generator import generate

READS = ()  # the user's folders alone, which params.yaml names
GENERATED, TRUTH = Path("data/generated"), Path("data/truth")


def main(params: Params) -> None:
    settings = params.ingest
    portraits, clips = GENERATED / "portraits", GENERATED / "clips"
    if settings.source == "generated":
        generate(params, GENERATED, TRUTH)
    else:
        for folder in (portraits, clips, TRUTH):  # outs of the stage, empty when the files are the user's
            folder.mkdir(parents=True, exist_ok=True)
        portraits, clips = Path(settings.portraits), Path(settings.clips)
    metrics = ingest(settings, params.networks.image, params.machine, portraits, clips, Path("data/ingest"))
    write_metrics("ingest", metrics)


if __name__ == "__main__":
    run_stage("ingest", main)
