"""Stage pretrain: the frozen networks that the paper takes from elsewhere, one item of the matrix each."""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.stage import run, write_metrics

NETWORKS = ("perception", "motion", "genhead")


def main(params: Params, network: str) -> None:
    if params.pretrain.source == "official":
        raise UserError(
            f"pretrain.source is official: the {network} weights have to be imported from {params.pretrain.official}, but this "
            "version does not have the import of the official weights. Set pretrain.source to generated to train small networks instead."
        )
    if network == "perception":  # one network needs nothing of the code of the others
        from pipeline.pretrain_perception import pretrain_perception as train
    elif network == "motion":
        from pipeline.pretrain_motion import pretrain_motion as train
    else:
        from pipeline.pretrain_genhead import pretrain_genhead as train
    data = Path("data")
    write_metrics(f"pretrain_{network}", train(params, data / "ingest", data / "labels", data / "truth", data / "pretrain" / network))


if __name__ == "__main__":
    run("pretrain", main, NETWORKS)
