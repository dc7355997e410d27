"""The cost of a network: figures that follow from its layers by hand, for every architecture that can be searched."""

import keras
import pytest
from keras import layers

from fer_ray.config.recipe import ARCHITECTURES, ModelConfig
from fer_ray.models.architectures import build
from fer_ray.models.flops import measure_cost, multiply_adds


def test_multiply_adds_are_those_counted_by_hand_for_every_kind_of_layer() -> None:
    inputs = layers.Input((16, 16, 4))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(inputs)  # 8 x 8 positions, 3 x 3 x 4 -> 8
    x = layers.Conv2D(6, 3, groups=2)(x)  # 6 x 6 positions, 3 x 3 x 4 -> 6 in two groups
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)  # 4 x 4 positions, 3 x 3 for each of 12
    x = layers.SeparableConv2D(5, 3, padding="same")(x)  # 4 x 4 positions, 3 x 3 for each of 12, then 12 -> 5
    inner = layers.Input((4, 4, 5))
    base = keras.Model(inner, layers.Conv2D(7, 1, use_bias=False)(inner))  # 4 x 4 positions, 5 -> 7
    x = layers.GlobalAveragePooling2D()(base(x))
    head = keras.Sequential([layers.Input((7,)), layers.Dense(3, activation="relu"), layers.Dense(2)])
    network = keras.Model(inputs, head(x))
    by_hand = 64 * 9 * 4 * 8 + 36 * 9 * 4 * 6 + 16 * 9 * 12 + 16 * (9 * 12 + 12 * 5) + 16 * 5 * 7 + 7 * 3 + 3 * 2
    assert multiply_adds(network) == by_hand


def test_multiply_adds_of_known_networks_are_those_of_their_papers() -> None:
    """MobileNetV2 has 300 million at 224 x 224 with its classifier of 1000 (Sandler et al. 2018, table 4)."""
    network = keras.applications.MobileNetV2(weights=None)
    assert multiply_adds(network) == pytest.approx(300e6, rel=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_cost_that_grows_with_the_area_of_its_input(architecture: str) -> None:
    config = ModelConfig(architecture)
    network = build(config, 7)
    counted = multiply_adds(network)
    assert counted > 5e6
    twice = ModelConfig(architecture, image_size=2 * config.image_size, dense=() if config.color == "rgb" else config.dense)
    assert 3.5 < multiply_adds(build(twice, 7)) / counted < 4.5


def test_a_network_is_measured_on_this_machine_without_changing_it() -> None:
    network = build(ModelConfig("cnn_32_64_128", widths=(4, 4, 4), dense=(4,)), 7)
    before = [weight.copy() for weight in network.get_weights()]
    cost = measure_cost(network)
    assert cost.milliseconds is not None
    assert cost.milliseconds > 0
    assert cost.parameters == sum(weight.size for weight in before)
    assert all((one == other).all() for one, other in zip(before, network.get_weights(), strict=True))
