"""The section `train`: what is allowed for losses and sizes of the network is said by `dgunet` alone."""

from dataclasses import fields
from typing import Any, get_args

import pytest
from factories import RECIPE

from dgunet.config import LossKind
from dgunet.network import DGUNetConfig
from pipeline.config.params import ParamsError, validated
from pipeline.training.settings import Network, Train


def test_every_size_but_the_image_channels_is_a_value_of_params_yaml() -> None:
    assert [field.name for field in fields(DGUNetConfig)] == ["image_channels", *Network.model_fields]


@pytest.mark.parametrize("loss", get_args(LossKind))
def test_every_loss_can_be_chosen(loss: str) -> None:
    assert validated({**RECIPE, "loss": loss}, Train).loss == loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 3}, "network.width: must be a whole number of at least 4, is 3"),
        ({"growth": -1}, "network.growth: must be a whole number of at least 0, is -1"),
        ({"num_stages": 1}, "network.num_stages: must be a whole number of at least 2, is 1"),
        ({"num_stages": "2"}, "network.num_stages: should be a valid integer, not '2'"),
        ({"share_stages": 1}, "network.share_stages: should be a valid boolean, not 1"),
        ({"sensing_ratio_percent": 101.0}, "network.sensing_ratio_percent: must be above 0 and at most 100"),
        ({"full_image": False}, "network: full_image: false needs a sensing network"),
    ],
)
def test_a_size_that_is_not_allowed_is_refused_at_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as error:
        validated({**RECIPE["network"], **changes}, Network, "network")
    assert str(error.value).startswith(message)


def test_the_sensing_family_may_restore_each_block_on_its_own() -> None:
    sizes = {**RECIPE["network"], "sensing_ratio_percent": 25, "full_image": False}
    assert not validated(sizes, Network).full_image
