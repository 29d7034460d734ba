"""Stage pretrain: the frozen networks that the paper takes from elsewhere, one item of the matrix each.

What a network needs is imported in a function of its own. So each has its own mark
(pipeline/engine/code_mark.py), and a change of the code of one trains no other again.
"""

from collections.abc import Callable
from typing import Any

from pipeline.config.params import Params
from pipeline.core.paths import INGEST, LABELS, PLOTS, PRETRAIN, TRUTH
from pipeline.stage import run_stage, write_metrics
from pipeline.train.distributed import launch

# And the folder that pretrain.official of params.yaml names.
READS = (INGEST, TRUTH, LABELS)

Train = Callable[..., dict[str, Any]]


def perception() -> Train:
    from pipeline.pretrain.perception import pretrain_perception

    return pretrain_perception


def motion() -> Train:
    from pipeline.pretrain.motion import pretrain_motion

    return pretrain_motion


def genhead() -> Train:
    from pipeline.pretrain.genhead import pretrain_genhead

    return pretrain_genhead


NETWORKS = {"perception": perception, "motion": motion, "genhead": genhead}


def generated(network: str) -> Train:
    return NETWORKS[network]()


def official(network: str) -> Train:
    from pipeline.pretrain.published import PUBLISHED

    return PUBLISHED[network]


def main(params: Params, network: str) -> None:
    published = params.pretrain.source == "official"
    section = getattr(params.pretrain, network)
    # Of the published networks perception alone has one that is trained here.
    trains = network == "perception" or not published
    train = official(network) if published else generated(network)
    # Only now: what the processes need is imported once.
    if trains and launch(params.machine.processes, section.batch // section.microbatch):
        return
    curves = PLOTS / f"pretrain_{network}.json"
    metrics = train(params, INGEST, LABELS, TRUTH, PRETRAIN / network, curves)
    write_metrics(f"pretrain_{network}", metrics)


if __name__ == "__main__":
    run_stage("pretrain", main, tuple(NETWORKS))
