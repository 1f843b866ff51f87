"""Work in the background: it is kept, the log tells of its errors, and a loop outlives them."""

from __future__ import annotations

import asyncio
import gc
import math

import pytest

from casa_hub.tasks import Background, repeat, woken


async def test_a_task_that_nobody_awaits_is_kept_until_it_is_done() -> None:
    background, done = Background(), asyncio.Event()

    async def work() -> None:
        await asyncio.get_running_loop().create_future()  # to which nothing else refers

    background.start(work(), "work")
    background.start(asyncio.sleep(0), "a moment").add_done_callback(lambda _: done.set())
    await done.wait()
    gc.collect()
    (task,) = background.tasks
    assert task.get_name() == "work"
    task.cancel()


async def test_the_log_tells_what_a_task_raised(caplog: pytest.LogCaptureFixture) -> None:
    background = Background()

    async def fail() -> None:
        raise OSError("no space left")

    task = background.start(fail(), "writing of files")
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert background.tasks == set()
    assert "writing of files failed" in caplog.text
    assert "no space left" in caplog.text


async def test_what_is_repeated_goes_on_after_an_error_until_it_is_done() -> None:
    answers = iter([False, OSError("once"), False, True])
    seen: list[str] = []

    async def call() -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pause() -> None:
        seen.append("pause")

    await repeat(call, pause, lambda error: seen.append(str(error)))
    assert seen == ["pause", "once", "pause", "pause"]


async def test_a_wait_ends_when_it_is_woken_or_its_time_is_over() -> None:
    wake = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.call_soon(wake.set)
    async with asyncio.timeout(60):
        await woken(wake, math.inf)
    assert not wake.is_set()
    begin = loop.time()
    await woken(wake, 0.05)
    assert loop.time() - begin >= 0.04
