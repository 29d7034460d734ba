"""Reading foreign safetensors, which people make of checkpoints, as `CheckpointFile` reads those."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

MOST_TOLD = 100 << 20  # bytes of the JSON at the beginning


class SafetensorsFile:
    """A file as data: `content` has its tensors by name.

    Raises ValueError, naming the file, when it is not readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path}: it is cut off or damaged ({error}). Download it again") from error

    def tensor(self, node: Tensor) -> Tensor:
        """A tensor of `content`."""
        return node


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: with the length of its JSON, and with that."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MOST_TOLD
