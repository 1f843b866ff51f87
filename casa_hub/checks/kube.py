"""Requests to the Kubernetes API server with the hub's account. Answers of any status are returned, not raised."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.config import ConfigException

from casa_hub.checks.web import TIMEOUT, Answer, NoAnswerError
from casa_hub.delivery.kubernetes.api import exchange
from casa_hub.delivery.kubernetes.delivery import KubernetesDelivery


class Kube:
    """A client of the API server."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def ask(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Answer:
        """One request. Raises NoAnswerError."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            async with asyncio.timeout(TIMEOUT):
                answer, content = await exchange(self._client, method, path, body, headers)
        except TimeoutError:
            raise NoAnswerError(f"no answer within {TIMEOUT:g} s") from None
        except (aiohttp.ClientError, OSError, ConfigException) as problem:
            raise NoAnswerError(f"can't be reached ({type(problem).__name__})") from None
        return Answer(answer.status, dict(answer.headers), content, time.time())


@asynccontextmanager
async def kube(delivery: KubernetesDelivery) -> AsyncIterator[Kube]:
    """A client for the delivery's cluster. Raises NoAnswerError if the configuration names no cluster."""
    try:
        client = delivery.api.connect()  # in this loop, to which the client will belong
    except (ConfigException, OSError) as problem:
        raise NoAnswerError(f"its address is not configured ({type(problem).__name__})") from None
    async with client:
        yield Kube(client)


def message(answer: Answer) -> str:
    """Status and message of a refusal. The API server's messages never quote the data of a Secret."""
    text = json.dumps(str(answer.document.get("message", "")))[1:-1][:300]
    return f"status {answer.status}" + (f": {text}" if text else "")
