"""The script a MONAI user would write for the bundle's network: float32, MONAI's own loading, windows and saving.

    python benchmarks/plain_monai_loop.py BUNDLE IMAGES OUTPUT [--window]

Without `--window` the whole crop is one evaluation, which is this loop's fastest form; with it MONAI's sliding
window pads every crop to 48 x 64 x 48.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    SaveImaged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)

from voxscore.networks import ScoreUNet


def main() -> None:
    """Segment every volume of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--window", action="store_true")
    arguments = parser.parse_args()
    network = ScoreUNet(3, 1, 3, [24, 48, 96, 192]).eval()
    network.load_state_dict(torch.load(arguments.bundle / "models" / "model.pt", weights_only=True))
    prepare = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (1.0, 1.0, 1.0)),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True),
            NormalizeIntensityd("image"),
        ]
    )
    finish = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", prepare, "image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged(
                "pred",
                output_dir=arguments.output,
                output_postfix="",
                output_dtype="uint8",
                separate_folder=False,
                resample=False,
                print_log=False,
            ),
        ]
    )
    inferer = SlidingWindowInferer((48, 64, 48), overlap=0.5) if arguments.window else SimpleInferer()
    files = [{"image": str(path)} for path in sorted(arguments.images.glob("*.nii.gz"))]
    with torch.no_grad():
        for batch in DataLoader(Dataset(files, prepare), batch_size=1):
            batch["pred"] = inferer(batch["image"], network)
            for item in decollate_batch(batch):
                finish(item)


if __name__ == "__main__":
    main()
