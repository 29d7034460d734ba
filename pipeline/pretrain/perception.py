"""Stage pretrain, item perception: small networks of the kind that the paper takes ready-made.

They are trained on the ingested faces. Face recognition learns the people (ArcFace, paper reference 8),
the LPIPS trunk a mix of tasks on aligned images, the regressor the fitted FLAME parameters. Nothing here
is comparable with the published networks; they play the same part in the graph.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.head.flame import Flame
from model.judges.identity import IdentityNet, identity_crop
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from pipeline.config.params import Params
from pipeline.core.curves import write_curves
from pipeline.core.device import choose_device
from pipeline.core.files import write_json
from pipeline.core.seeds import derive_seed, rng, torch_rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry import head_model
from pipeline.geometry.expression import ExpressionOffsets
from pipeline.geometry.label import FIVE_POINTS, Estimate
from pipeline.networks.judges import Judges
from pipeline.networks.weights import save_weights
from pipeline.pretrain.alike import warn_of_alike
from pipeline.pretrain.face_rows import evenly
from pipeline.pretrain.faces import FaceBatch, Faces, augment, read_faces
from pipeline.pretrain.onnx_export import export_identity
from pipeline.pretrain.unseen import Numbers, Unseen, measure_unseen
from pipeline.train.checkpoint import History
from pipeline.train.distributed import Group, only_first
from pipeline.train.loop import Run, forget, train
from pipeline.train.schedule import set_rates
from pipeline.train.task import Loss, Task

Network = TypeVar("Network", bound=nn.Module)
# Of ArcFace; the published 0.5 and 64 need more faces than a small run has.
MARGIN, SCALE = 0.3, 24.0
WEIGHT_DECAY = 0.02
POINTS = 140  # numbers of 70 landmarks
CALIBRATED = 256  # faces


class FaceTask(Task[FaceBatch]):
    """One of the networks, and the layers that teach it. Below are its three kinds."""

    name: str
    rate = 1.0  # times the learning rate of the section
    part = 1.0  # of the steps of the section

    def __init__(
        self,
        params: Params,
        faces: Faces,
        unseen: Unseen,
        knowledge: "ParameterLoss",
    ) -> None:
        self.section, self.seed = params.pretrain.perception, params.seed
        self.faces, self.unseen, self.knowledge = faces, unseen, knowledge
        self.device = knowledge.average.device
        self.people = int(faces.people.max()) + 1
        self.steps = max(1, round(self.section.steps * self.part))
        self.networks = self.build(params)
        parameters = []
        for network in self.networks.values():
            parameters += network.parameters()
        rate = self.section.learning_rate * self.rate
        self.optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY, fused=True)
        self.optimisers = {self.name: self.optimiser}
        self.train_mode(True)

    @abstractmethod
    def build(self, params: Params) -> dict[str, nn.Module]:
        """The network, under the name of the task, and what teaches it."""

    @abstractmethod
    def loss(self, batch: FaceBatch, draw: torch.Generator) -> Tensor:
        """What the microbatch adds to the loss of its step, a scalar.

        `draw` is for random variations of the faces.
        """

    def share(self, batch: FaceBatch) -> float:
        """How much of its step a microbatch is."""
        return len(batch.people) / self.section.batch

    @abstractmethod
    def look(self) -> Numbers:
        """What the network makes of people who it is not trained on."""

    def new(self, name: str, make: Callable[[], Network]) -> Network:
        """A network whose random weights follow from the seed and its name."""
        with torch.random.fork_rng(devices=[]):
            own_seed = derive_seed(self.seed, "perception", name)
            torch.manual_seed(own_seed % 2**63)
            return make().to(self.device)

    def batch(self, step: int, microbatch: int) -> FaceBatch:
        draw = rng(self.seed, "perception", self.name, step)
        rows = draw.integers(len(self.faces), size=self.section.batch)
        first = microbatch * self.section.microbatch
        last = first + self.section.microbatch
        return self.faces.batch(rows[first:last], rows)

    def set_rates(self, step: int) -> None:
        # Half a cosine down to nothing: a short run ends in a settled network.
        set_rates(
            self.optimiser,
            step,
            warmup=0,
            decay_until=self.steps,
        )

    def losses(self, step: int, microbatch: int, batch: FaceBatch) -> Iterator[Loss]:
        draw = torch_rng(self.seed, "perception", self.name, "augment", step, microbatch)
        # Dropout knows no generator but the global one.
        with torch.random.fork_rng(devices=[]):
            seed = derive_seed(self.seed, "perception", self.name, "dropout", step, microbatch)
            torch.manual_seed(seed % 2**63)
            value = self.loss(batch, draw)
        yield Loss(self.name, value, {"loss": value.detach()})

    def validate(self, group: Group) -> Mapping[str, float]:
        if not group.first:
            return {}
        # BatchNorm must neither learn from these people nor take their mean for that of the others.
        self.train_mode(False)
        numbers = self.look()
        self.train_mode(True)
        means = {}
        for name, values in numbers.items():
            if values.numel():
                means[name] = float(values.mean())
        return means

    def train_mode(self, mode: bool) -> None:
        for network in self.networks.values():
            network.train(mode)


class IdentityTask(FaceTask):
    """Face recognition: the dearest network, and the first to be good."""

    name, rate, part = "identity", 2.0, 1 / 3

    def build(self, params: Params) -> dict[str, nn.Module]:
        sizes = params.networks.identity
        self.network = self.new("identity", lambda: IdentityNet(sizes))
        self.centres = self.new("centres", lambda: nn.Linear(sizes.embedding, self.people, bias=False))
        return {"identity": self.network, "centres": self.centres}

    def loss(self, batch: FaceBatch, draw: torch.Generator) -> Tensor:
        image, _, _ = augment(batch.image, batch.landmarks, draw, 0.0)
        # Detected landmarks are never exact, so that a face must be known in crops that are a little off.
        five = batch.landmarks[:, list(FIVE_POINTS)]
        noise = torch.randn(five.shape, generator=draw).to(five.device)
        five = five + 0.01 * noise
        crop = identity_crop(image, five)
        chance = torch.rand(len(crop), 1, 1, 1, generator=draw)
        mirrored = chance.to(crop.device) < 0.5
        crop = torch.where(mirrored, crop.flip(3), crop)
        embedding = self.network(crop)
        loss = arcface_loss(embedding, self.centres.weight, batch.people)
        return self.share(batch) * loss

    def look(self) -> Numbers:
        return self.unseen.people(self.network)


class TrunkTask(FaceTask):
    """The LPIPS trunk.

    Its features must tell who it is, where the landmarks lie, what the face does, and how the picture was
    spoilt.
    """

    name, rate = "trunk", 0.4

    def build(self, params: Params) -> dict[str, nn.Module]:
        seed = derive_seed(self.seed, "perception", "trunk") % 2**63
        self.network = Trunk(seed).to(self.device)
        # The package lpips freezes its trunk.
        self.network.requires_grad_(True)
        self.answers = [self.people, POINTS, Estimate.SIZE, 2]
        features = self.network.num_features
        # One linear layer gives all answers, one after the other.
        numbers = sum(self.answers)
        self.heads = self.new("heads", lambda: nn.Linear(features, numbers))
        centre = self.faces.landmarks[evenly(len(self.faces))].mean(0)
        self.centre = torch.from_numpy(centre).to(self.device)
        return {"trunk": self.network, "heads": self.heads}

    def loss(self, batch: FaceBatch, draw: torch.Generator) -> Tensor:
        image, landmarks, damage = augment(batch.image, batch.landmarks, draw, 0.08)
        answers = self.heads(self.network(image))
        who, where, what, how = answers.split(self.answers, dim=1)
        # Places and parameters are asked for as deviations from the mean face: an untrained head, which
        # answers about zero, begins there.
        moved = (landmarks - self.centre).flatten(1)
        found = self.knowledge.average + what * self.knowledge.deviation
        errors = self.knowledge(found, batch.targets)
        share = self.share(batch)
        person = share * F.cross_entropy(who, batch.people)
        place = share * 2.0 * F.l1_loss(where, moved / 0.05)
        parameters = _mean_of_known(errors, batch)
        spoilt = share * F.l1_loss(how, damage)
        return person + place + parameters + spoilt

    def look(self) -> Numbers:
        return self.unseen.distances(self.network)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Set `scale` so that photos of two people are 0.5 apart on average."""
        draw = rng(self.seed, "perception", "calibration")
        order = draw.permutation(len(self.faces))
        chosen = order[:CALIBRATED]
        image = self.faces.batch(chosen).image.to(self.device)
        people = self.faces.people[chosen]
        others = torch.from_numpy(people != np.roll(people, 1))
        # The distance is `scale` times a sum, so that one measurement at 1 is enough.
        self.network.scale.fill_(1.0)
        distance = self.network.distance(image, image.roll(1, 0))
        apart = distance[others.to(self.device)]
        self.network.scale.fill_(0.5 / apart.mean())


class RegressorTask(FaceTask):
    """The estimator of expression, jaw, eyes and head rotation."""

    name = "regressor"

    def build(self, params: Params) -> dict[str, nn.Module]:
        self.network = self.new("regressor", Regressor)
        self.network.mean.copy_(self.knowledge.average)
        self.network.spread.copy_(self.knowledge.deviation)
        return {"regressor": self.network}

    def loss(self, batch: FaceBatch, draw: torch.Generator) -> Tensor:
        # Framing tells something of the pose, so that it is changed less than for the trunk.
        image, _, _ = augment(batch.image, batch.landmarks, draw, 0.03)
        found = self.network(image)
        errors = self.knowledge(found, batch.targets)
        return _mean_of_known(errors, batch)

    def look(self) -> Numbers:
        return self.unseen.parameters(self.network)


def pretrain_perception(
    params: Params,
    ingest: Path,
    labels: Path,
    truth: Path,
    out: Path,
    curves: Path | None = None,
) -> dict[str, Any]:
    """Train the three networks and write them to `out`; returns metrics.

    Files: identity.safetensors, identity.onnx, trunk.safetensors, regressor.safetensors. The metrics are
    measured on the validation clips: cosines of the same and of other people, LPIPS of the same and of
    other people, the regressor's error relative to always answering the mean, and the last training
    losses.
    """
    section, sizes = params.pretrain.perception, params.networks.identity
    inputs = (section, sizes, params.flame, params.seed, ingest, labels, truth)
    mark = fingerprint(__file__, *inputs)
    faces = read_faces(ingest, labels, truth, "train")
    unseen = read_faces(ingest, labels, truth, "validation")
    trainer = PerceptionTrainer(params, faces, unseen, mark, curves)
    identity, trunk, regressor = trainer.identity(), trainer.trunk(), trainer.regressor()
    only_first(trainer.group)

    note = {
        "trained_on": len(faces),
        "people": int(faces.people.max()) + 1,
        "image": faces.size,
    }
    facts = {"network": "identity", "sizes": asdict(sizes)}
    save_weights(out / "identity.safetensors", identity.state_dict(), note | facts)
    save_weights(out / "trunk.safetensors", trunk.state_dict(), note | {"network": "lpips-alex trunk"})
    save_weights(out / "regressor.safetensors", regressor.state_dict(), note | {"network": "regressor"})
    export_identity(identity, out / "identity.onnx")
    write_json(out / "moved.json", trainer.moved)
    trainer.finish()
    judges = Judges(identity, trunk, regressor)
    measured = measure_unseen(judges, unseen)
    measured |= warn_of_alike(judges, ingest, labels, truth, out)
    return note | trainer.losses | measured | {"history": trainer.history}


class PerceptionTrainer:
    """Trains one network after the other on the same faces. `losses` are the last ones, by network."""

    def __init__(
        self,
        params: Params,
        faces: Faces,
        unseen: Faces,
        mark: str,
        curves: Path | None = None,
    ) -> None:
        """`mark` is the fingerprint that names the scratch folders; `curves` is as in `Run`."""
        self.params, self.faces, self.mark, self.curves = params, faces, mark, curves
        self.device = choose_device(params.machine.device)
        self.unseen = Unseen(unseen, self.device)
        flame = Flame(head_model.load(params.flame.model)).to(self.device)
        # Means and deviations over some thousand faces are those over millions, but for the third digit.
        fitted = np.flatnonzero(faces.fitted)
        targets = faces.targets(fitted[evenly(len(fitted))])
        self.knowledge = ParameterLoss(flame, torch.from_numpy(targets).to(self.device))
        self.losses: dict[str, float] = {}
        self.history: History = []
        self.moved: dict[str, float] = {}
        self.runs: list[Run] = []
        self.group = Group()

    def identity(self) -> IdentityNet:
        return self._train(IdentityTask).network

    def trunk(self) -> Trunk:
        task = self._train(TrunkTask)
        task.calibrate()
        return task.network

    def regressor(self) -> Regressor:
        return self._train(RegressorTask).network

    def finish(self) -> None:
        """Remove the checkpoints, once the results stand where they belong."""
        for run in self.runs:
            forget(run)

    def _train(self, kind: type[FaceTask]) -> Any:
        task = kind(self.params, self.faces, self.unseen, self.knowledge)
        name = task.name
        folder = scratch_folder(f"pretrain_{name}", self.mark)
        run = Run(
            f"pretrain {name}",
            folder,
            task.steps,
            task.section.batch,
            task.section.batch // task.section.microbatch,
            device=self.device,
            # Of this network alone and with its steps, for `psi4d status`.
            curves=folder / "curves.json",
        )
        self.runs.append(run)
        trained = train(task, run)
        self.group = trained.group
        task.train_mode(False)
        self.moved |= trained.moved
        for row in trained.history:
            # The three networks share a table, in which steps of one are not those of another.
            del row["step"]
            if "loss" in row:
                row[name] = self.losses[f"{name}_loss"] = row.pop("loss")
            self.history.append(row)
        if self.curves and self.group.first:
            write_curves(self.curves, self.history)
        return task


def arcface_loss(
    embedding_BE: Tensor,
    centres_CE: Tensor,
    people_B: Tensor,
    margin: float = MARGIN,
    scale: float = SCALE,
) -> Tensor:
    """Additive angular margin softmax over the people, a scalar.

    The angle to the own centre counts as if it were larger by `margin` radians.
    """
    embedding = F.normalize(embedding_BE, dim=1)
    centres = F.normalize(centres_CE, dim=1)
    cosine = embedding @ centres.T
    # At the ends the arc cosine has no gradient.
    own = cosine.gather(1, people_B[:, None])
    own = own.clamp(-1 + 1e-6, 1 - 1e-6)
    # Past pi - margin the cosine would rise again; there the loss goes on linearly.
    turned = torch.cos(torch.acos(own) + margin)
    beyond = own - margin * np.sin(margin)
    pushed = torch.where(own > -np.cos(margin), turned, beyond)
    logits = cosine.scatter(1, people_B[:, None], pushed)
    return F.cross_entropy(scale * logits, people_B)


class ParameterLoss:
    """How wrong estimated parameters are, (B,).

    By the landmarks that they move, by the numbers themselves, and by the rotation. Each of the three is
    an L1 over what always answering the mean would give, so that 1 is no knowledge at all.
    """

    def __init__(self, flame: Flame, targets_N109: Tensor) -> None:
        self.linear = ExpressionOffsets(flame).linear()
        self.average = targets_N109.mean(0)
        self.deviation = targets_N109.std(0)
        parts = self._parts(targets_N109 - self.average)
        self.units = [part.abs().mean() + 1e-6 for part in parts]

    def __call__(self, found_B109: Tensor, wanted_B109: Tensor) -> Tensor:
        parts = self._parts(found_B109 - wanted_B109)
        errors = []
        for part, unit in zip(parts, self.units, strict=True):
            error = part.abs().mean(1)
            errors.append(error / unit)
        return sum(errors) / len(errors)

    def _parts(self, difference_B109: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        landmarks = difference_B109[:, Estimate.FACE] @ self.linear
        expression = difference_B109[:, Estimate.EXPRESSION]
        return landmarks, expression, difference_B109[:, Estimate.ROTATION]


def _mean_of_known(values_B: Tensor, batch: FaceBatch) -> Tensor:
    """The part of the mean over the faces of the step that were fitted."""
    # The count is that of the whole step: microbatches add up to its mean however its faces fall into them.
    return (values_B * batch.fitted).sum() / batch.known[0].clamp_min(1)
