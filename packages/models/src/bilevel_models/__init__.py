"""Few-shot backbones, linear heads, explicit normalisation and the encode-once bridge."""

from bilevel_models import heads
from bilevel_models.allocator import keep_freed_memory
from bilevel_models.backbone import Backbone
from bilevel_models.backbones.conv_net import ConvNet, c4l, omniglot_net
from bilevel_models.backbones.paper_resnet import ResidualNet, rn
from bilevel_models.backbones.precomputed import Precomputed
from bilevel_models.backbones.recomputed import differentiable_twice
from bilevel_models.backbones.resnet12 import ResNet12, resnet12
from bilevel_models.backbones.torchvision import TorchvisionBackbone, torchvision_backbone
from bilevel_models.encoder import Encoder, as_images
from bilevel_models.normalization import EACH_SET, RUNNING, Normalization, OffsetNorm2d, Statistics
from bilevel_models.pretrained.card import Card
from bilevel_models.pretrained.weights import (
    list_pretrained,
    pretrained_card,
    pretrained_head,
    pretrained_weights,
)
from bilevel_models.registry import create_model, list_models, register_model

__all__ = [
    "EACH_SET",
    "RUNNING",
    "Backbone",
    "Card",
    "ConvNet",
    "Encoder",
    "Normalization",
    "OffsetNorm2d",
    "Precomputed",
    "ResNet12",
    "ResidualNet",
    "Statistics",
    "TorchvisionBackbone",
    "as_images",
    "c4l",
    "create_model",
    "differentiable_twice",
    "heads",
    "keep_freed_memory",
    "list_models",
    "list_pretrained",
    "omniglot_net",
    "pretrained_card",
    "pretrained_head",
    "pretrained_weights",
    "register_model",
    "resnet12",
    "rn",
    "torchvision_backbone",
]
