"""A server that speaks TLS: both faces of the queue go through it, and neither trusts one that proves nothing."""

import asyncio
import shutil
import subprocess

import pytest

from service.config import QueueSettings
from service.errors import LeaseLost, Unavailable
from service.protocol import End
from service.queue.redis.gateway import RedisQueue
from tests.claims import emission
from tests.fleet.redis_server import HOST, RedisServer, find_programs, free_port
from tests.fleet.waiting import PATIENCE_S
from tests.service.queue.redis.conftest import in_each_loop

STOP = End(finish_reason="stop")
WITHOUT_TLS = ("Bad directive", "Failed finding TLS support")
"""What Redis says, and what Valkey."""
OPENSSL = """
req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem
req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server -keyout server.key -out server.csr
x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 2 -extfile names -out server.pem
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with an authority's certificate, and a server's of this machine's address that it has signed."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text(f"subjectAltName=IP:{HOST}")
    for command in OPENSSL.strip().splitlines():
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def address(certificates, tmp_path_factory):
    """Of a server that speaks TLS, without what would make it trusted."""
    port = free_port()
    files = {"tls_cert_file": f"{certificates}/server.pem", "tls_key_file": f"{certificates}/server.key"}
    options = {"tls_port": str(port), "tls_auth_clients": "no", **files}
    server = RedisServer(tmp_path_factory.mktemp("tls"), program=find_programs().get("redis"), **options)
    try:
        server.start()
    except AssertionError as error:
        if any(refusal in str(error) for refusal in WITHOUT_TLS):
            pytest.skip("this server was built without TLS")
        raise
    with server:
        yield f"rediss://{HOST}:{port}/0"


@in_each_loop
async def test_a_request_goes_through_it(address, certificates, make_request, connect):
    url = f"{address}?ssl_ca_certs={certificates}/ca.pem"
    worker = connect(url)
    worker.register({"tiny": "r1"})
    assert worker.claim(1, 0.01) == []  # it hears of work from now on
    async with RedisQueue(url, QueueSettings()) as queue:
        claiming = asyncio.create_task(asyncio.to_thread(worker.claim, 1, PATIENCE_S))
        [request_id] = await queue.submit([make_request(str(id(queue)))])
        [claim] = await claiming
        watching = queue.watch([request_id])
        await asyncio.to_thread(worker.emit, [emission(claim, 1, 2)])
        told = list(await anext(watching))
        await asyncio.to_thread(worker.emit, [emission(claim, 3, base=2, end=STOP)])
        told += [update async for updates in watching for update in updates]
    assert [token_id for update in told for token_id in update.token_ids] == [1, 2, 3]
    assert told[-1].end == STOP


@in_each_loop
async def test_one_that_proves_nothing_is_not_trusted_and_the_log_says_why(address, connect, caplog):
    async with RedisQueue(address, QueueSettings()) as queue:
        with pytest.raises(Unavailable):
            await queue.stats()
    with pytest.raises(LeaseLost, match="CERTIFICATE_VERIFY_FAILED"):
        connect(address, lease_s=4.0).emit([])
    assert caplog.text.count("CERTIFICATE_VERIFY_FAILED") == 2
