"""What the server's processor has worked, for benchmarks."""

from service.queue.redis.address import Address

TIMEOUT_S = 5.0


def processor_s(url: str) -> float:
    """Return the seconds that the processor of the server at `url` has worked since its start.

    Raises:
        SettingError: no address of a Redis.
    """
    with Address(url).connect(TIMEOUT_S) as client:
        info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
