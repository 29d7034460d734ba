"""An interactive page: the head turns with the mouse, and moves with a driver.

The browser draws nothing of the head but the mesh. Each time its camera moves it gets a picture of Psi that
is rendered for that very camera, as its background. viser is an optional package: pip install viser.
"""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.head.flame import SCALE
from model.volume.planes import Planes
from pipeline.avatar.animator import Avatar, repeated
from pipeline.avatar.driver import Driver
from pipeline.avatar.mesh import GRID, surface, usual_level
from pipeline.avatar.relative import strengthened
from pipeline.avatar.studio import Studio
from pipeline.core.errors import UserError
from pipeline.core.pictures import coloured_depth, tile, to_uint8
from pipeline.geometry.camera import FOCAL, pack
from pipeline.geometry.camera_path import FOCUS, RADIUS

HOST = "127.0.0.1"  # this machine alone: a page for everybody in the network would be a surprise
HEIGHT = 512  # pixels of the background
FIELD = 2.0 * np.arctan(0.5 / FOCAL)  # of view, radians; Psi was trained with this one


class Viewer:
    """The page of one avatar. All clients see the same frame, each from its own camera."""

    def __init__(
        self,
        studio: Studio,
        avatar: Avatar,
        driven: tuple[Driver, Tensor] | None,
        port: int,
    ) -> None:
        """Raises UserError when viser is not installed or the port is taken."""
        viser = _viser()
        self.studio, self.avatar = studio, avatar
        self.skull = studio.skull(avatar)
        self.driver, self.motions = driven if driven else (None, avatar.motion_1M)
        # Every client has a thread, and all share the planes of the frame.
        self.lock = threading.Lock()
        self.server = _serve(viser, port)
        self.server.scene.set_up_direction("+y")
        self.server.initial_camera.position = (0.0, 0.0, RADIUS)
        self.server.initial_camera.look_at = tuple(FOCUS)
        self.server.initial_camera.up = (0.0, 1.0, 0.0)
        self.server.initial_camera.fov = float(FIELD)
        self._add_controls()
        self.planes = self._planes()
        self.server.on_client_connect(self._greet)

    def _add_controls(self) -> None:
        gui, last = self.server.gui, len(self.motions) - 1
        self.frame = gui.add_slider("frame", 0, max(last, 1), 1, 0, disabled=last == 0)
        self.playing = gui.add_checkbox("play", False, disabled=last == 0)
        # From the photo's own face over the driver's to a caricature of it.
        self.strength = gui.add_slider("strength of the motion", 0.0, 1.5, 0.05, 1.0)
        self.yaw = gui.add_slider("turn, degrees", -45, 45, 1, 0)
        self.pitch = gui.add_slider("nod, degrees", -20, 20, 1, 0)
        self.depth = gui.add_checkbox("depth", False)
        self.mesh = gui.add_checkbox("mesh", False)
        changes = {
            self._move: (self.frame, self.strength),
            self._show_all: (self.yaw, self.pitch, self.depth),
            self._show_mesh: (self.yaw, self.pitch, self.mesh),
        }
        for change, controls in changes.items():
            for control in controls:
                control.on_update(change)

    @torch.inference_mode()
    def _planes(self) -> Planes:
        """The tri-planes of the frame that is set."""
        own = self.avatar.motion_1M
        driving = self.motions[self.frame.value : self.frame.value + 1]
        motion = strengthened(own, driving, self.strength.value)
        return self.studio.animator.psi.planes(repeated(self.avatar.source, 1), motion)

    @torch.inference_mode()
    def picture(self, camera_25: np.ndarray) -> np.ndarray:
        """What `camera_25` sees, uint8 (S, S, 3): the head, or its depth if that is set."""
        psi = self.studio.animator.psi
        camera = torch.from_numpy(camera_25)[None, None].to(self.studio.animator.device)
        rendering = psi.render(self.planes, self.avatar.source, camera)
        if self.depth.value:
            depth, opacity = rendering.depth[0, 0], rendering.opacity[0, 0]
            return coloured_depth(depth.cpu().numpy(), opacity.cpu().numpy())
        return to_uint8(rendering.image)[0]

    def play(self) -> None:
        """Run until the process is stopped: with `play` set, frames come at the driver's rate."""
        while True:
            time.sleep(float(1 / self.driver.rate) if self.driver and self.playing.value else 0.1)
            if self.playing.value:
                self.frame.value = (self.frame.value + 1) % len(self.motions)

    def _greet(self, client: Any) -> None:
        client.camera.on_update(lambda _: self._show(client))
        self._show(client)

    def _move(self, _: Any = None) -> None:
        with self.lock:
            self.planes = self._planes()
        self._show_all()
        self._show_mesh()

    def _show_all(self, _: Any = None) -> None:
        for client in self.server.get_clients().values():
            self._show(client)

    def _show(self, client: Any) -> None:
        camera = client.camera
        seen = browser_camera(camera.wxyz, camera.position, camera.fov, camera.aspect, self._turn())
        # One picture at a time: the newest camera asks again anyway.
        with self.lock:
            picture = self.picture(seen)
        # The browser stretches its background over the window, whose shape the camera knows.
        client.scene.set_background_image(tile(picture, HEIGHT), format="jpeg")

    def _show_mesh(self, _: Any = None) -> None:
        if not self.mesh.value:
            self.server.scene.remove_by_name("/head")
            return
        animator = self.studio.animator
        # Half of the usual grid: a mesh of a second and a megabyte, as it is made anew for every frame.
        with self.lock:
            level = usual_level(animator, self.avatar, self.planes)
            head = surface(animator, self.planes, level, GRID // 2, self.skull)
        turn = self._turn()
        x, y, z, w = turn.as_quat()
        place = FOCUS - turn.apply(FOCUS)
        self.server.scene.add_mesh_trimesh(
            "/head", head, scale=SCALE, wxyz=(w, x, y, z), position=tuple(place)
        )

    def _turn(self) -> Rotation:
        """How the head is turned about FOCUS."""
        return Rotation.from_euler("yx", [self.yaw.value, -self.pitch.value], degrees=True)


def browser_camera(
    wxyz: np.ndarray,
    position: np.ndarray,
    fov: float,
    aspect: float,
    head: Rotation,
) -> np.ndarray:
    """The 25 numbers of a browser's camera that looks at a head turned by `head`.

    A browser's camera looks along its own z with y down; ours along -z with y up. `fov` is the vertical field
    of view in radians, `aspect` width over height of the window.
    """
    w, x, y, z = wxyz
    axes = Rotation.from_quat([x, y, z, w]).as_matrix() @ np.diag([1.0, -1.0, -1.0])
    # To turn the head is to turn the camera about it the other way.
    back = head.inv().as_matrix()
    cam2world = np.eye(4)
    cam2world[:3, :3] = back @ axes
    cam2world[:3, 3] = back @ (np.asarray(position) - FOCUS) + FOCUS
    focal = 0.5 / np.tan(fov / 2)
    intrinsics = np.array([[focal / aspect, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])
    return pack(cam2world, intrinsics)


def view(studio: Studio, photo: Path, driving: Path | None, port: int) -> Viewer:
    """A page of a photo or a saved avatar, moved by `driving`, that is being served. Raises UserError."""
    driven = studio.driver(driving) if driving else None
    return Viewer(studio, studio.avatar(photo), driven, port)


def _viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise UserError("psi4d view needs the package viser: pip install viser") from error
    return viser


def _serve(viser: Any, port: int) -> Any:
    try:
        return viser.ViserServer(HOST, port, label="psi4d", verbose=False)
    except OSError as error:
        raise UserError(
            f"the page cannot be served at port {port}: {error.strerror}. Try --port {port + 1}."
        ) from error
