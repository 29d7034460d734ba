"""What the tables of the report and their columns are called."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A number of the evaluation in words; `up` says that higher is better."""

    name: str
    up: bool
    meaning: str


@dataclass(frozen=True)
class Section:
    """A table of the evaluation in words."""

    title: str
    note: str


COLUMNS = {
    "lpips": Column("LPIPS", False, "perceptual distance to the driving frame"),
    "lpips_head": Column("LPIPS head", False, "the same on the head region"),
    "lpips_thumbnail": Column(
        "as sharp as",
        True,
        "side in pixels of the enlarged thumbnail of the true frame that has the same LPIPS",
    ),
    "psnr_foreground": Column("PSNR fg", True, "dB inside the foreground"),
    "fid_perception": Column(
        "FID (own trunk)", False, "Fréchet distance over our own perceptual trunk, not Inception"
    ),
    "fid_inception_pytorch_fid": Column(
        "FID", False, "Fréchet distance over Inception's features, pictures resized as pytorch-fid does"
    ),
    "id_arcface": Column("ID (ArcFace)", True, "cosine of insightface's features to the source"),
    "id": Column("ID", True, "cosine of face recognition features to the source"),
    "aed": Column("AED", False, "mean L1 of estimated expression"),
    "apd": Column("APD", False, "mean square of estimated head rotation, rad² × 1000"),
    "aed_deep3d_mean_abs": Column(
        "AED (Deep3D, abs)", False, "mean absolute difference of Deep3D's 64 expression coefficients"
    ),
    "aed_deep3d_mean_square": Column("AED (Deep3D, square)", False, "mean square of the same"),
    "apd_deep3d_mean_abs": Column(
        "APD (Deep3D, abs)", False, "mean absolute difference of Deep3D's three angles, rad"
    ),
    "apd_deep3d_mean_square": Column("APD (Deep3D, square)", False, "mean square of the same, rad² × 1000"),
    "aed_f_mean_abs": Column(
        "AED_f (abs)", False, "mean absolute difference of the features of EMOCA's emotion network"
    ),
    "aed_f_mean_square": Column("AED_f (square)", False, "mean square of the same"),
    "aed_f_euclid": Column("AED_f (length)", False, "length of the same"),
    "aed_f_one_minus_cosine": Column("AED_f (cosine)", False, "1 less the cosine of the features"),
    "sync_confidence": Column(
        "LSE-C", True, "SyncNet's confidence in lips and driving sound, mean over clips with sound"
    ),
    "sync_distance": Column("LSE-D", False, "SyncNet's least distance of lips and driving sound"),
    "expression_error": Column(
        "Expression", False, "error against the true expression, % of the inter-ocular distance"
    ),
    "mouth_opening_correlation": Column(
        "Mouth", True, "correlation of the mouth's opening with that of the driving frames, over each clip"
    ),
    "eye_opening_correlation": Column("Lids", True, "the same of the opening of the eyes"),
    "gaze_correlation": Column("Gaze", True, "the same of the gaze to the side"),
    "faces_found": Column("Found", True, "share of the pictures in which the face mesh finds a face"),
    "response": Column(
        "Response",
        True,
        "how far the driving motion changes a picture at a fixed camera, root mean square in [-1, 1]",
    ),
    "response_face": Column(
        "at the face",
        True,
        "how much more of that change lies at brows, eyes and mouth than in the mean; 1 is no more",
    ),
    "rms": Column(
        "Response", True, "how far the motion of another frame changes a picture, root mean square in [-1, 1]"
    ),
    "true_rms": Column("True", True, "how far it changes the true picture"),
    "share": Column("Share", True, "of the true change, in size"),
    "agreement": Column("Agreement", True, "correlation of the change with the true one"),
    "opacity_iou": Column("Opacity IoU", True, "overlap with the true silhouette"),
    "depth_error": Column("Depth", False, "error of the distance along the ray, world units"),
    "psi": Column(
        "Cons.", True, "cosine between results of one source under different drivers, from the front"
    ),
    "psi_arcface": Column("Cons. (ArcFace)", True, "the same by insightface's network"),
    "landmark_error": Column(
        "Landmarks", False, "median distance of the inner landmarks, over the inter-ocular distance"
    ),
    "contour_error": Column(
        "Contour", False, "the same of the contour, which the face mesh defines otherwise"
    ),
    "rotation_degrees": Column("Rotation", False, "median, degrees"),
    "jaw_degrees": Column("Jaw", False, "median, degrees"),
    "vertices_mm": Column("Vertices", False, "median of the mean distance, mm of the head model"),
}
METHOD_NAMES = {
    "psi": "Psi",
    "psi3d": "Psi_3d, no motion",
    "copy": "source copied",
    "real": "real frame",
    "cross": "Psi, another person",
}
SECTIONS = {
    "self": Section(
        "Self-reenactment",
        "Source and driving frame are of the same held-out clip; every result is seen from the driving "
        "frame's fitted camera.",
    ),
    "cross": Section(
        "Cross-identity reenactment", "The driving frame shows another person of the held-out clips."
    ),
    "consistency": Section(
        "Consistency", "Results of one source under drivers of different people, all from the front."
    ),
    "lips": Section(
        "Lips against the driving sound",
        "SyncNet on whole clips that have sound; the source is the clip's first frame, or that of the clip "
        "before.",
    ),
    "novel_views": Section(
        "Novel views against the truth",
        "The generator rendered these heads from other sides; nothing in training has seen them.",
    ),
    "response": Section(
        "Response to the motion",
        "Psi draws the first frame of a clip with its own motion and with that of another frame, from one "
        "true side; the generator did, too.",
    ),
    "ingest": Section("Landmarks against the truth", "Of the generated portraits, as ingest found them."),
    "fit_flame": Section(
        "Fitted heads against the truth", "Of all clip frames: what the landmark fit recovers."
    ),
}
