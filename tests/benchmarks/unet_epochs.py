r"""Does the U-Net's own decoder cost accuracy? It and the peer's, trained alike by train.py.

    python tests/benchmarks/unet_epochs.py --data DIR --encoder-weights none --batch-size 8 \
        --crop 256 256 --augment 0 --epochs 8

The peer is segmentation_models.pytorch. Takes train.py's flags. The same samples in the same
order, loss, optimizer and schedule; both from random weights.
"""

import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train
from segmentation.models.layers import Normalise, start_undecided


class PeerUNet(nn.Module):
    """The peer's model as train.py calls it, with the undecided start of the Tversky loss."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.normalise = Normalise()
        self.unet = smp.Unet("resnet18", encoder_weights=None, classes=num_classes)
        start_undecided(self.unet.segmentation_head[0])

    def forward(self, image: Tensor, keys: Tensor | None = None) -> Tensor:
        """N x 3 x H x W -> N x K x H x W; the peer wants multiples of 32."""
        height, width = image.shape[-2:]
        padded = F.pad(self.normalise(image), (0, -width % 32, 0, -height % 32), mode="replicate")
        return self.unet(padded)[..., :height, :width]


def main() -> None:
    own_start, flags = train.start_fresh, sys.argv[1:]

    def peer_start(name: str, classes: int, *_: Any) -> tuple[nn.Module, dict, None]:
        return PeerUNet(classes), {"model": "unet", "num_classes": classes}, None

    for name, start in (("segmentation_models.pytorch", peer_start), ("ours", own_start)):
        train.start_fresh = start
        with tempfile.TemporaryDirectory() as out:
            sys.argv = ["train.py", "--model", "unet", "--out", out, *flags]
            began = time.perf_counter()
            train.main()
            with open(Path(out) / "history.csv") as file:
                scores = [float(row["val_miou"]) for row in csv.DictReader(file)]
        minutes = (time.perf_counter() - began) / 60
        listed = ", ".join(f"{score:.4f}" for score in scores)
        print(f"{name}: val mIoU {listed}; best {max(scores):.4f}, {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
