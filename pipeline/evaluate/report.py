"""What people look at after a run: a contact sheet, videos and one HTML page that holds everything and needs no network."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.clips.held_out import Frame, stack_frames
from pipeline.core.files import write_bytes
from pipeline.core.films import encode_mp4
from pipeline.core.pictures import below, beside, encode_jpeg_within, tile, to_uint8
from pipeline.evaluate.methods import Drawn, Synthesizers
from pipeline.evaluate.protocol import Evaluation
from pipeline.geometry import camera_path

TILE = 128  # pixels
ROWS = 6  # of the contact sheet
SHEET_BYTES = 400_000
VIDEO_FPS, VIDEO_FRAMES = 12, 96

LEGEND = {
    "lpips": ("LPIPS", "down", "perceptual distance to the driving frame"),
    "lpips_head": ("LPIPS head", "down", "the same on the head region"),
    "lpips_thumbnail": (
        "as sharp as",
        "up",
        "side in pixels of the enlarged thumbnail of the true frame that has the same LPIPS",
    ),
    "psnr_foreground": ("PSNR fg", "up", "dB inside the foreground"),
    "fid_perception": (
        "FID (own trunk)",
        "down",
        "Fréchet distance over our own perceptual trunk, not Inception",
    ),
    "id": ("ID", "up", "cosine of face recognition features to the source"),
    "aed": ("AED", "down", "mean L1 of estimated expression"),
    "apd": ("APD", "down", "mean square of estimated head rotation, rad² × 1000"),
    "expression_error": (
        "Expression",
        "down",
        "error against the true expression, % of the inter-ocular distance",
    ),
    "mouth_opening_correlation": (
        "Mouth",
        "up",
        "correlation of the mouth's opening with that of the driving frames, over each clip",
    ),
    "eye_opening_correlation": ("Lids", "up", "the same of the opening of the eyes"),
    "gaze_correlation": ("Gaze", "up", "the same of the gaze to the side"),
    "faces_found": ("Found", "up", "share of the pictures in which the face mesh finds a face"),
    "response": (
        "Response",
        "up",
        "how far the driving motion changes a picture at a fixed camera, root mean square in [-1, 1]",
    ),
    "response_face": (
        "at the face",
        "up",
        "how much more of that change lies at brows, eyes and mouth than in the mean; 1 is no more",
    ),
    "rms": (
        "Response",
        "up",
        "how far the motion of another frame changes a picture, root mean square in [-1, 1]",
    ),
    "true_rms": ("True", "up", "how far it changes the true picture"),
    "share": ("Share", "up", "of the true change, in size"),
    "agreement": ("Agreement", "up", "correlation of the change with the true one"),
    "opacity_iou": ("Opacity IoU", "up", "overlap with the true silhouette"),
    "depth_error": ("Depth", "down", "error of the distance along the ray, world units"),
    "psi": ("Cons.", "up", "cosine between results of one source under different drivers, from the front"),
    "landmark_error": (
        "Landmarks",
        "down",
        "median distance of the inner landmarks, over the inter-ocular distance",
    ),
    "contour_error": ("Contour", "down", "the same of the contour, which the face mesh defines otherwise"),
    "rotation_degrees": ("Rotation", "down", "median, degrees"),
    "jaw_degrees": ("Jaw", "down", "median, degrees"),
    "vertices_mm": ("Vertices", "down", "median of the mean distance, mm of the head model"),
}
METHOD_NAMES = {"psi": "Psi", "psi3d": "Psi_3d, no motion", "copy": "source copied", "real": "real frame"}
SECTIONS = {
    "self": (
        "Self-reenactment",
        "Source and driving frame are of the same held-out clip; every result is seen from the driving frame's fitted camera.",
    ),
    "cross": ("Cross-identity reenactment", "The driving frame shows another person of the held-out clips."),
    "consistency": (
        "Consistency",
        "Results of one source under drivers of different people, all from the front.",
    ),
    "novel_views": (
        "Novel views against the truth",
        "The generator rendered these heads from other sides; nothing in training has seen them.",
    ),
    "response": (
        "Response to the motion",
        "Psi draws the first frame of a clip with its own motion and with that of another frame, from one true side; the generator did, too.",
    ),
    "ingest": ("Landmarks against the truth", "Of the generated portraits, as ingest found them."),
    "fit_flame": ("Fitted heads against the truth", "Of all clip frames: what the landmark fit recovers."),
}


def contact_sheet(pairs: Sequence[tuple[str, Frame, Frame]], synthesizers: Synthesizers, views: int) -> bytes:
    """A JPEG below 400 kB with a row for each of `pairs`: what it is ("self" or "cross"), source, driving frame.

    Columns: source, driving frame, result, `views` other sides, depth.
    """
    sides = camera_path.yaw_sweep(views)
    degrees = np.degrees(camera_path.sweep_yaws(views))
    titles = ["source", "driving", "result", *(f"{round(-angle):+d} degrees" for angle in degrees), "depth"]
    rows = []
    for kind, source, driving in pairs:
        free = torch.from_numpy(sides).to(driving.camera.device)
        cameras = torch.cat([driving.camera[None], free])
        drawn = synthesizers.draw("psi", [source], [driving], cameras[None])
        real = to_uint8(torch.stack([source.image, driving.image]))
        pictures = [*real, *to_uint8(drawn.image), depth_picture(drawn)]
        tiles = [tile(picture, TILE) for picture in pictures]
        rows.append(beside(tiles, [f"{kind}: {titles[0]}", *titles[1:]]))
    return encode_jpeg_within(below(rows), SHEET_BYTES)


def depth_picture(drawn: Drawn) -> np.ndarray:
    """The depth of the first picture in colour, near is bright; black outside the foreground. (S, S, 3) uint8."""
    depth, inside = drawn.depth[0, 0].cpu().numpy(), drawn.opacity[0, 0].cpu().numpy() > 0.5
    if not inside.any():
        return np.zeros((*depth.shape, 3), np.uint8)
    low, high = np.quantile(depth[inside], [0.01, 0.99])
    level = np.clip((high - depth) / max(high - low, 1e-6), 0, 1)
    coloured = cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    return np.where(inside[..., None], coloured, 0).astype(np.uint8)


def reenactment_video(source: Frame, drivings: Sequence[Frame], synthesizers: Synthesizers) -> bytes:
    """An MP4: source, driving frame, result at the driving camera, and the result from a camera that orbits the head."""
    titles = ("source", "driving", "result", "free camera")
    free = torch.from_numpy(camera_path.orbit(len(drivings))).to(source.camera.device)
    cameras = torch.stack([stack_frames(drivings, "camera"), free], dim=1)
    sources = [source] * len(drivings)
    drawn = to_uint8(synthesizers.draw("psi", sources, drivings, cameras).image)
    real = to_uint8(stack_frames([source, *drivings], "image"))

    def picture(i: int) -> np.ndarray:
        shown = (real[0], real[1 + i], drawn[2 * i], drawn[2 * i + 1])
        return beside([tile(each, TILE) for each in shown], titles)

    return encode_mp4(map(picture, range(len(drivings))), VIDEO_FPS)


def write_pictures(evaluation: Evaluation, *, views: int, videos: int, sheet: Path, out: Path) -> None:
    """Write the contact sheet with `views` other sides to `sheet`, and `videos` videos and report.html to `out`."""
    clips, synthesizers = evaluation.clips, evaluation.synthesizers
    same = [("self", *pair) for pair in _one_per_source(evaluation.self_pairs)]
    crossed = [("cross", *pair) for pair in _one_per_source(evaluation.cross_pairs)]
    half = max(ROWS - len(crossed), ROWS // 2)
    picture = contact_sheet([*same[:half], *crossed[: ROWS - min(half, len(same))]], synthesizers, views)
    write_bytes(sheet, picture)
    films: dict[str, bytes] = {}
    for kind, source, driving in _alternate(same, crossed)[:videos]:
        frames = [clips.frame(key) for key in clips.clips[driving.clip][:VIDEO_FRAMES]]
        name = f"{kind}-{source.clip}-{driving.clip}.mp4"
        films[name] = reenactment_video(source, frames, synthesizers)
        write_bytes(out / "videos" / name, films[name])
    write_bytes(out / "report.html", page(evaluation.scores, picture, films).encode())


def _one_per_source(pairs: Sequence[tuple[Frame, Frame]]) -> list[tuple[Frame, Frame]]:
    """The middle pair of each source."""
    groups: dict[str, list[tuple[Frame, Frame]]] = {}
    for pair in pairs:
        groups.setdefault(pair[0].key, []).append(pair)
    return [group[len(group) // 2] for group in groups.values()]


def _alternate(first: list, second: list) -> list:
    mixed = [item for both in zip(first, second, strict=False) for item in both]
    rest = min(len(first), len(second))
    return [*mixed, *first[rest:], *second[rest:]]


def page(scores: dict[str, Any], sheet: bytes, films: dict[str, bytes]) -> str:
    """The report as one HTML text with pictures and videos inside."""
    parts = [
        section(name, title, note, scores[name])
        for name, (title, note) in SECTIONS.items()
        if scores.get(name)
    ]
    films_html = "".join(
        f'<figure><video src="{_data("video/mp4", film)}" controls loop muted autoplay playsinline></video>'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, film in films.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>psi4d: evaluation</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1d2330; background: #f5f6f8; margin: 0 auto; max-width: 1080px; padding: 24px; }}
h1 {{ font-size: 26px; margin: 0 0 4px; }} h2 {{ font-size: 18px; margin: 32px 0 2px; }} p {{ margin: 0 0 10px; color: #566; }}
table {{ border-collapse: collapse; background: #fff; box-shadow: 0 1px 3px #0002; border-radius: 6px; overflow: hidden; }}
th, td {{ padding: 7px 14px; text-align: right; font-variant-numeric: tabular-nums; border-bottom: 1px solid #edf0f3; }}
th {{ font-weight: 600; background: #eef1f5; }} th:first-child, td:first-child {{ text-align: left; }} td.best {{ font-weight: 700; color:
#0b6b3a; }} tr.real td {{ color: #8a93a3; }} figure {{ margin: 0 0 16px; }} img, video {{ max-width: 100%; border-radius: 6px; display:
block; }} video {{ width: 1024px; }} figcaption {{ color: #667; font-size: 13px; }} dl {{ display: grid; grid-template-columns: max-content
auto; gap: 2px 16px; font-size: 13px; }} dt {{ font-weight: 600; }} dd {{ margin: 0; color: #566; }} </style></head><body> <h1>psi4d:
evaluation</h1> <p>People of held-out clips. The judging networks were trained in this run: the numbers compare rows of one table, and are
not comparable with published ones.</p> <figure><img src="{_data("image/jpeg", sheet)}" alt="source, driving frame, result, other sides,
depth"></figure> {"".join(parts)} {"<h2>Videos</h2>" + films_html if films else ""} <h2>What the columns
mean</h2><dl>{"".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, _, text in LEGEND.values())}</dl> </body></html>
"""


def section(name: str, title: str, note: str, values: dict[str, Any]) -> str:
    """One table: a row a method, or a single row of numbers."""
    rows = values if all(isinstance(value, dict) for value in values.values()) else {"": values}
    columns = [key for key in LEGEND if any(key in row for row in rows.values())]
    best = {
        key: _best(key, {method: row[key] for method, row in rows.items() if key in row and method != "real"})
        for key in columns
    }
    header = "".join(
        f'<th title="{html.escape(LEGEND[key][2])}">{html.escape(LEGEND[key][0])} {"↓" if LEGEND[key][1] == "down" else "↑"}</th>'
        for key in columns
    )
    body = "".join(
        f'<tr class="{method}"><td>{METHOD_NAMES.get(method, "Psi" if name == "consistency" else "median")}</td>'
        + "".join(
            f'<td class="{"best" if len(rows) > 1 and best[key] == method else ""}">{_number(row.get(key))}</td>'
            for key in columns
        )
        + "</tr>"
        for method, row in rows.items()
    )
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(note)}</p><table><tr><th></th>{header}</tr>{body}</table>"


def _best(key: str, values: dict[str, float]) -> str | None:
    pick = min if LEGEND[key][1] == "down" else max
    return pick(values, key=values.__getitem__) if values else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
