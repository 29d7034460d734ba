"""Stage pretrain: the frozen networks that the paper takes from elsewhere, one item of the matrix each."""

from pathlib import Path

from pipeline.params import Params
from pipeline.stage import run, write_metrics

NETWORKS = ("perception", "motion", "genhead")


def main(params: Params, network: str) -> None:
    if params.pretrain.source == "official":
        from pipeline.pretrain_official import OFFICIAL

        train = OFFICIAL[network]
    elif network == "perception":  # one network needs nothing of the code of the others
        from pipeline.pretrain_perception import pretrain_perception as train
    elif network == "motion":
        from pipeline.pretrain_motion import pretrain_motion as train
    else:
        from pipeline.pretrain_genhead import pretrain_genhead as train
    data = Path("data")
    write_metrics(f"pretrain_{network}", train(params, data / "ingest", data / "labels", data / "truth", data / "pretrain" / network))


if __name__ == "__main__":
    run("pretrain", main, NETWORKS)
