"""Schedulers that are Dask's, and not the rig's."""

from __future__ import annotations

import asyncio
from typing import Any

import distributed
import pytest

from rig.cluster import worker
from rig.cluster.address import Address
from rig.cluster.link import Link
from rig.cluster.scheduler import PAGES
from rig.errors import RequestError

HERE: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": PAGES}


def test_a_plain_dask_scheduler_is_told_from_the_rigs() -> None:
    async def ask() -> None:
        async with distributed.Scheduler(**HERE) as plain:
            address = Address(plain.address, None)
            with pytest.raises(RequestError, match="no scheduler of the rig"):
                await worker._require(address)
            link = Link(address, print)
            try:
                with pytest.raises(RequestError, match="no scheduler of the rig"):
                    await link.open()
            finally:
                await link.close()

    asyncio.run(ask())
