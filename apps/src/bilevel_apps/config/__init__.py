"""What a run is: the settings, where they are read, and the presets."""

from bilevel_apps.config.load import (
    describe_keys,
    dump_config,
    list_presets,
    load_config,
    load_preset,
    parse_config,
    short,
    with_settings,
)
from bilevel_apps.config.safe_yaml import parse_yaml
from bilevel_apps.config.schema import (
    Config,
    Count,
    CountOrZero,
    NonNegative,
    Number,
    Switch,
    TrackingSection,
    TrainSection,
    flatten,
)

__all__ = [
    "Config",
    "Count",
    "CountOrZero",
    "NonNegative",
    "Number",
    "Switch",
    "TrackingSection",
    "TrainSection",
    "describe_keys",
    "dump_config",
    "flatten",
    "list_presets",
    "load_config",
    "load_preset",
    "parse_config",
    "parse_yaml",
    "short",
    "with_settings",
]
