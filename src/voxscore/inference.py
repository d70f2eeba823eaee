"""A bundle's `configs/inference.json` outside MONAI's engines: its parts by their ids, its network with the weights in.

    parser = inference_config(bundle, device)      ids may still be replaced
    network = loaded_network(bundle, parser)       from here on they are objects

`voxscore segment` and `voxscore synthesize` begin like this.
"""

from __future__ import annotations

import torch
from monai.bundle import ConfigParser
from torch import nn

from voxscore.bundles import Bundle, verified_weights
from voxscore.errors import UserError

__all__ = ["inference_config", "loaded_network"]


def inference_config(bundle: Bundle, device: torch.device) -> ConfigParser:
    """The configuration of a bundle's inference, for a device.

    Raises:
        UserError: it is missing or is not JSON.
    """
    parser = ConfigParser()
    config = bundle.config("inference")
    try:
        parser.read_config(config)
    except (OSError, ValueError) as error:
        raise UserError(config, "cannot be read as JSON", "restore it from the bundle's source") from error
    parser["bundle_root"], parser["device"] = str(bundle.root), device
    return parser


def loaded_network(bundle: Bundle, parser: ConfigParser) -> nn.Module:
    """The network of a configuration with the bundle's weights, in evaluation mode; parses the configuration.

    Raises:
        UserError: a file of weights is missing, corrupt or of another network.
    """
    bundle.verify()
    parser.parse()
    network: nn.Module = parser.get_parsed_content("network")
    weights = verified_weights(bundle.root)
    try:
        network.load_state_dict(torch.load(weights, map_location=parser["device"], weights_only=True))
    except RuntimeError as error:
        raise UserError(weights, "does not fit the bundle's network", "reinstall the bundle") from error
    return network.eval()
