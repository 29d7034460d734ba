"""Stage pretrain, item perception: small networks of the kind that the paper takes ready-made, trained on the ingested faces.

Face recognition learns the people (ArcFace, paper reference 8), the LPIPS trunk a mix of tasks on aligned images, the regressor the fitted
FLAME parameters. Nothing here is comparable with the published networks; they play the same part in the graph.
"""

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.head.flame import Flame
from model.judges.identity import IdentityNet, identity_crop
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.weights import save_weights
from pipeline.config.params import Params
from pipeline.core.device import choose_device, to_device
from pipeline.core.files import write_bytes, write_json
from pipeline.core.seeds import derive_seed, rng, torch_rng
from pipeline.engine.fingerprint import fingerprint
from pipeline.engine.scratch import scratch_folder
from pipeline.geometry import head_model
from pipeline.geometry.expression import EXPRESSION, EYES, JAW, ROTATION, ExpressionOffsets
from pipeline.geometry.label import FIVE_POINTS
from pipeline.networks.judges import Judges
from pipeline.pretrain.faces import Faces, augment, read_faces
from pipeline.train.loop import TrainingLoop, update

Numbers = dict[str, Tensor]
PARTS = {"expression": EXPRESSION, "jaw": JAW, "eyes": EYES, "rotation": ROTATION}
MARGIN, SCALE = 0.3, 24.0  # of ArcFace; the published 0.5 and 64 need more faces than a small run has


def arcface_loss(
    embedding_BE: Tensor, centres_CE: Tensor, people_B: Tensor, margin: float = MARGIN, scale: float = SCALE
) -> Tensor:
    """Additive angular margin softmax over the people: the angle to the own centre counts as if it were larger by `margin` radians."""
    cosine = F.normalize(embedding_BE, dim=1) @ F.normalize(centres_CE, dim=1).T
    own = cosine.gather(1, people_B[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    # Past pi - margin the cosine would rise again; there the loss goes on linearly.
    pushed = torch.where(
        own > -np.cos(margin), torch.cos(torch.acos(own) + margin), own - margin * np.sin(margin)
    )
    return F.cross_entropy(scale * cosine.scatter(1, people_B[:, None], pushed), people_B)


def pretrain_perception(params: Params, ingest: Path, labels: Path, truth: Path, out: Path) -> dict[str, Any]:
    """Train the three networks and write identity.safetensors, identity.onnx, trunk.safetensors and regressor.safetensors to `out`.

    Returns small metrics, measured on the validation clips: cosines of the same and of other people, LPIPS of the same and of other people, the
    regressor's error relative to always answering the mean, and the last training losses.
    """
    faces, unseen = (read_faces(ingest, labels, truth, split) for split in ("train", "validation"))
    trainer = PerceptionTrainer(
        params,
        faces,
        unseen,
        fingerprint(
            __file__,
            params.pretrain.perception,
            params.networks.identity,
            params.flame,
            params.seed,
            params.threads,
            ingest,
            labels,
            truth,
        ),
    )
    identity, trunk, regressor = trainer.identity(), trainer.trunk(), trainer.regressor()
    note = {
        "trained_on": len(faces.images),
        "people": int(faces.people.max()) + 1,
        "image": faces.images.shape[1],
    }
    save_weights(
        out / "identity.safetensors",
        identity.state_dict(),
        note | {"network": "identity", "sizes": asdict(params.networks.identity)},
    )
    save_weights(out / "trunk.safetensors", trunk.state_dict(), note | {"network": "lpips-alex trunk"})
    save_weights(out / "regressor.safetensors", regressor.state_dict(), note | {"network": "regressor"})
    export_identity(identity, out / "identity.onnx")
    write_json(out / "moved.json", trainer.moved)
    trainer.finish()
    measured = measure_unseen(Judges(identity, trunk, regressor), unseen)
    return note | trainer.losses | measured | {"history": trainer.history}


class PerceptionTrainer:
    """Trains one network after the other on the same faces."""

    def __init__(self, params: Params, faces: Faces, unseen: Faces, name: str) -> None:
        self.section, self.seed, self.sizes = (
            params.pretrain.perception,
            params.seed,
            params.networks.identity,
        )
        self.faces, self.name, self.device = faces, name, choose_device(params.machine.device)
        self.unseen = Unseen(unseen, self.device)
        flame = Flame(head_model.load(params.flame.model)).to(self.device)
        self.parameter_loss = ParameterLoss(
            flame, torch.from_numpy(faces.targets[faces.fitted]).to(self.device)
        )
        self.losses: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.moved: dict[str, float] = {}
        self.runs: list[TrainingLoop] = []

    def identity(self) -> IdentityNet:
        network = self._new("identity", lambda: IdentityNet(self.sizes))
        people = int(self.faces.people.max()) + 1
        centres = self._new("centres", lambda: nn.Linear(self.sizes.embedding, people, bias=False))

        def loss(
            generator: torch.Generator, image: Tensor, landmarks: Tensor, people_B: Tensor, *_: Tensor
        ) -> Tensor:
            image, _, _ = augment(image, landmarks, generator, 0.0)
            five = landmarks[:, list(FIVE_POINTS)]
            five = five + 0.01 * torch.randn(five.shape, generator=generator).to(five.device)
            crop = identity_crop(image, five)
            mirrored = torch.rand(len(crop), 1, 1, 1, generator=generator).to(crop.device) < 0.5
            return arcface_loss(network(torch.where(mirrored, crop.flip(3), crop)), centres.weight, people_B)

        # The dearest, and the first to be good.
        self._fit(
            "identity",
            {"identity": network, "centres": centres},
            loss,
            partial(self.unseen.people, network),
            rate=2.0,
            share=1 / 3,
        )
        return network

    def trunk(self) -> Trunk:
        trunk = Trunk(derive_seed(self.seed, "perception", "trunk") % 2**63).to(self.device)
        trunk.requires_grad_(True)  # lpips freezes its trunk
        people, points = int(self.faces.people.max()) + 1, 140
        heads = self._new("heads", lambda: nn.Linear(trunk.num_features, people + points + 109 + 2))
        average, spread = self.parameter_loss.average, self.parameter_loss.deviation
        centre = torch.from_numpy(self.faces.landmarks.mean(0)).to(self.device)

        def loss(
            generator: torch.Generator,
            image: Tensor,
            landmarks: Tensor,
            people_B: Tensor,
            targets: Tensor,
            fitted: Tensor,
        ) -> Tensor:
            image, landmarks, damage = augment(image, landmarks, generator, 0.08)
            who, where, what, how = heads(trunk(image)).split([people, points, 109, 2], dim=1)
            moved = (landmarks - centre).flatten(1)
            return (
                F.cross_entropy(who, people_B)
                + 2.0 * F.l1_loss(where, moved / 0.05)
                + _masked_mean(self.parameter_loss(average + what * spread, targets), fitted)
                + F.l1_loss(how, damage)
            )

        self._fit(
            "trunk",
            {"trunk": trunk, "heads": heads},
            loss,
            partial(self.unseen.distances, trunk),
            rate=0.4,
            share=1.0,
        )
        self._calibrate(trunk)
        return trunk

    def _calibrate(self, trunk: Trunk) -> None:
        """Set `scale` so that photos of two people are 0.5 apart on average."""
        order = rng(self.seed, "perception", "calibration").permutation(len(self.faces.images))[:256]
        image = self.faces.batch(order)[0].to(self.device)
        people = self.faces.people[order]
        others = torch.from_numpy(people != np.roll(people, 1)).to(self.device)
        with torch.no_grad():
            trunk.scale.fill_(1.0)
            trunk.scale.fill_(0.5 / trunk.distance(image, image.roll(1, 0))[others].mean())

    def regressor(self) -> Regressor:
        network = self._new("regressor", Regressor)
        network.mean.copy_(self.parameter_loss.average)
        network.spread.copy_(self.parameter_loss.deviation)

        def loss(
            generator: torch.Generator,
            image: Tensor,
            landmarks: Tensor,
            _: Tensor,
            targets: Tensor,
            fitted: Tensor,
        ) -> Tensor:
            image, _, _ = augment(image, landmarks, generator, 0.03)
            return _masked_mean(self.parameter_loss(network(image), targets), fitted)

        self._fit(
            "regressor",
            {"regressor": network},
            loss,
            partial(self.unseen.parameters, network),
            rate=1.0,
            share=1.0,
        )
        return network

    def _new(self, name: str, make: Callable[[], nn.Module]) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "perception", name) % 2**63)
            return make().to(self.device)

    def _fit(
        self,
        name: str,
        modules: dict[str, nn.Module],
        loss: Callable[..., Tensor],
        look: Callable[[], Numbers],
        rate: float,
        share: float,
    ) -> None:
        """Train for `share` of the steps with `rate` times the learning rate of the section; `look` measures people who are not trained on."""
        section, count = self.section, len(self.faces.images)
        steps = max(1, round(section.steps * share))
        parameters = [p for module in modules.values() for p in module.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=section.learning_rate * rate, weight_decay=0.02)
        training = TrainingLoop(
            label=f"pretrain {name}",
            folder=scratch_folder(f"pretrain_{name}", self.name),
            steps=steps,
            batch=section.batch,
            modules=modules,
            optimisers={name: optimiser},
            device=self.device,
        )

        def load(step: int) -> tuple[Tensor, ...]:
            return self.faces.batch(
                rng(self.seed, "perception", name, step).integers(count, size=section.batch)
            )

        def step(i: int, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
            # Half a cosine down to nothing: a short run ends in a settled network.
            optimiser.param_groups[0]["lr"] = (
                section.learning_rate * rate * 0.5 * (1.0 + np.cos(np.pi * i / steps))
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(
                    derive_seed(self.seed, "perception", name, "dropout", i) % 2**63
                )  # dropout knows no other generator
                value = loss(torch_rng(self.seed, "perception", name, "augment", i), *batch)
            update(optimiser, value)
            return {"loss": value.detach()}

        def validate() -> dict[str, float]:
            for module in modules.values():
                module.eval()
            found = {number: float(values.mean()) for number, values in look().items() if values.numel()}
            for module in modules.values():
                module.train()
            return found

        for module in modules.values():
            module.train()
        for row in training.run(load, step, validate=validate):
            del row["step"]
            if "loss" in row:
                row[name] = self.losses[f"{name}_loss"] = row.pop("loss")
            self.history.append(row)
        self.moved |= training.moved
        self.runs.append(training)
        for module in modules.values():
            module.eval()

    def finish(self) -> None:
        for training in self.runs:
            training.finish()


class ParameterLoss:
    """How wrong estimated parameters are, (B,): by the landmarks that they move, by the numbers themselves, and by the rotation.

    Each of the three is an L1 over what always answering the mean would give, so that 1 is no knowledge at all.
    """

    def __init__(self, flame: Flame, targets_N109: Tensor) -> None:
        self.linear = ExpressionOffsets(flame).linear()
        self.average, self.deviation = targets_N109.mean(0), targets_N109.std(0)
        self.units = [part.abs().mean() + 1e-6 for part in self._parts(targets_N109 - self.average)]

    def _parts(self, difference_B109: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            difference_B109[:, :106] @ self.linear,
            difference_B109[:, EXPRESSION],
            difference_B109[:, ROTATION],
        )

    def __call__(self, found_B109: Tensor, wanted_B109: Tensor) -> Tensor:
        parts = self._parts(found_B109 - wanted_B109)
        return sum(part.abs().mean(1) / unit for part, unit in zip(parts, self.units, strict=True)) / len(
            parts
        )


def _masked_mean(values_B: Tensor, mask_B: Tensor) -> Tensor:
    return (values_B * mask_B).sum() / mask_B.sum().clamp_min(1)


def export_identity(network: IdentityNet, path: Path) -> Path:
    """Write the face recognition network as ONNX (1 x 3 x 112 x 112 or more, RGB in [-1, 1]), in a form that insightface's get_model and
    onnx2torch read.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter that insightface's readers understand is the older one, and says so
        torch.onnx.export(
            copy.deepcopy(network).cpu().eval(),
            (torch.zeros(1, 3, 112, 112),),
            buffer,
            input_names=["data"],
            output_names=["embedding"],
            dynamic_axes={"data": {0: "batch"}, "embedding": {0: "batch"}},
            opset_version=13,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    _fold_identities(model.graph)
    onnx.checker.check_model(model)
    return write_bytes(path, model.SerializeToString(deterministic=True))


def _fold_identities(graph: onnx.GraphProto) -> None:
    """Give every user of an Identity of a constant the constant: the exporter shares equal tensors that way, which other readers do not
    expect.
    """
    constants = {tensor.name for tensor in graph.initializer}
    renamed = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in constants
    }
    kept = [node for node in graph.node if not node.output or node.output[0] not in renamed]
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)


class Unseen:
    """Faces that no network of this stage is trained on, and what a network makes of them."""

    def __init__(self, faces: Faces, device: torch.device, limit: int = 192) -> None:
        """Of the faces `limit`, evenly spread."""
        chosen = np.unique(np.linspace(0, len(faces.images) - 1, limit).astype(int))
        self.image, self.landmarks, self.who, self.targets, self.fitted = to_device(
            faces.batch(chosen), device
        )

    @torch.no_grad()
    def people(self, network: IdentityNet) -> Numbers:
        """Cosines of the features of the same person and of others, a number a pair."""
        crops = identity_crop(self.image, self.landmarks[:, list(FIVE_POINTS)])
        embedding = F.normalize(network(crops), dim=1)
        same = (self.who[:, None] == self.who[None]) & ~torch.eye(
            len(self.who), dtype=torch.bool, device=self.who.device
        )
        cosine = embedding @ embedding.T
        return {"cosine_same": cosine[same], "cosine_other": cosine[self.who[:, None] != self.who[None]]}

    @torch.no_grad()
    def distances(self, trunk: Trunk) -> Numbers:
        """LPIPS of two pictures of a person and of two people, a number a pair."""
        apart = len(self.image) // 2
        near, far = self.who == self.who.roll(1, 0), self.who != self.who.roll(apart, 0)
        return {
            "lpips_same": trunk.distance(self.image, self.image.roll(1, 0))[near],
            "lpips_other": trunk.distance(self.image, self.image.roll(apart, 0))[far],
        }

    @torch.no_grad()
    def parameters(self, network: Regressor) -> Numbers:
        """The error of estimated parameters over that of always answering the mean, one number each; 1 is no knowledge."""
        wanted = self.targets[self.fitted]
        wrong, unknown = (network(self.image)[self.fitted] - wanted).abs(), (wanted - network.mean).abs()
        return {
            f"{name}_relative_error": wrong[:, part].mean() / unknown[:, part].mean().clamp_min(1e-8)
            for name, part in PARTS.items()
        }


def measure_unseen(judges: Judges, faces: Faces) -> dict[str, float]:
    """How good the networks are on people they have not seen."""
    unseen = Unseen(faces, judges.regressor.mean.device)
    numbers = (
        unseen.people(judges.identity_net)
        | unseen.distances(judges.trunk)
        | unseen.parameters(judges.regressor)
    )
    return {name: round(float(value.mean()), 6) for name, value in numbers.items() if value.numel()}
