"""Settings: a value out of range is refused with its field, the value and the remedy."""

import pytest

from service.config import EngineSettings, GatewaySettings, QueueSettings, WorkerSettings, parse_settings
from service.errors import SettingError

TABLES = (GatewaySettings, QueueSettings, EngineSettings, WorkerSettings)
REFUSED = [
    (GatewaySettings, {"port": 65_536}, "port = 65536"),
    (GatewaySettings, {"host": ""}, "host"),
    (GatewaySettings, {"drain_s": -1.0}, "drain_s = -1.0"),
    (GatewaySettings, {"max_body_bytes": 0}, "max_body_bytes = 0"),
    (QueueSettings, {"max_queue_depth": 0}, "max_queue_depth = 0"),
    (QueueSettings, {"lease_s": 0.0}, "lease_s = 0.0"),
    (EngineSettings, {"max_num_seqs": 0}, "max_num_seqs = 0"),
    (EngineSettings, {"max_num_seqs": 100, "max_step_tokens": 99}, "max_num_seqs = 100"),
    (EngineSettings, {"kv_cache_mb": 0}, "kv_cache_mb = 0"),
    (EngineSettings, {"dtype": "fp8"}, "fp8"),
    (WorkerSettings, {"idle_wait_s": 3.0}, "lease_s = 5.0"),
    (WorkerSettings, {"max_step_s": 0.0}, "max_step_s = 0.0"),
]


@pytest.mark.parametrize(("kind", "options", "words"), REFUSED)
def test_a_value_out_of_range_is_refused(kind, options, words):
    with pytest.raises(SettingError, match=words):
        parse_settings(kind, options)


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_takes_its_own_options_only_and_has_defaults(kind):
    assert parse_settings(kind, {"log_level": "info", "workers": 3}) == kind()
