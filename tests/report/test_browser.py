"""The report opened in a real browser: what rows, names and settings hold is shown and never run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from divsel_ray.config import Config
from divsel_ray.report import charts
from divsel_ray.report.page import write_report
from tests.report.browser import CHROMIUM, Browser, chromium
from tests.report.conftest import HOSTILE
from tests.report.mapped import MappedRun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path; Debian's package of that name has it"),
]

ELSEWHERE = "https://hostile.invalid"
FIRE = "document.title='fired'"
RUNNING = (
    f"<script>{FIRE}</script>",
    f"</script><script>{FIRE}</script>",
    f"</title></style></textarea><script>{FIRE}</script>",
    f'"><img src=x onerror="{FIRE}">',
    f'<svg onload="{FIRE}"></svg>',
    f'<iframe srcdoc="<script>parent.{FIRE}</script>"></iframe>',
    f"--><details open ontoggle={FIRE}>",
)
"""Each changes the title of a page that does not keep it from running."""
ASKING = (
    f"<img src={ELSEWHERE}/pixel>",
    f"<style>@import url({ELSEWHERE}/style)</style>",
    f"<link rel=stylesheet href={ELSEWHERE}/link>",
)
"""Each makes an unprotected page ask another host for something."""
LINKS = (
    f"<a href='{ELSEWHERE}/link'>link</a>",
    f'<a href="javascript:{FIRE}">link</a>',
    f"[link](javascript:{FIRE})",
)
LITERAL = (
    "{{7*7}} {% raw %} ${7*7} %{x} %{customdata}",
    f"\u2028{FIRE}\u2029//",
    "<b>bold</b> <sub>low</sub> &lt;b&gt; &amp;",
)
PAYLOADS = (*RUNNING, *ASKING, *LINKS, *LITERAL)
EVERYTHING = " ".join(PAYLOADS)

_HOVER = """(async () => {
  const figure = document.getElementById("figure-map"), shown = [];
  for (const [curveNumber, trace] of figure._fullData.entries()) {
    if (trace.mode !== "markers" || trace.hoverinfo === "skip") continue;
    for (let pointNumber = 0; pointNumber < trace.x.length; pointNumber++) {
      // Plotly draws one label in 50 ms.
      await new Promise((ready) => setTimeout(ready, 60));
      Plotly.Fx.hover(figure, [{curveNumber, pointNumber}]);
      const layer = figure.querySelector(".hoverlayer");
      shown.push([layer.textContent, layer.querySelectorAll("a, image, foreignObject, script, [onload], [onerror]").length]);
    }
  }
  return shown;
})()"""
"""Hovers over every point of the map; the texts shown, and how many elements that could do harm came with each."""


@dataclass
class HostileRun(MappedRun):
    """Its settings, input names and warnings are hostile as well."""

    def result(self, config: Config) -> None:
        values = config.model_dump(mode="json")
        values["embed"]["model"] = values["pool"]["data"][0] = EVERYTHING
        values["refine"]["train"]["model"] = EVERYTHING
        super().result(Config.model_validate(values))

    def commit(self, name: str, facts: Any, tables: Any = None) -> Any:
        if name == "cluster":
            facts = {**facts, "warnings": [EVERYTHING]}
        return super().commit(name, facts, tables)


def hostile_page(folder: Path) -> Path:
    """The report of a run that is hostile wherever it can be."""
    return write_report(HostileRun(folder, rounds=2, pool_rows=60, texts=[*PAYLOADS * 4]).build())


def lead(act: Callable[[Browser], Awaitable[Any]]) -> tuple[Any, Browser]:
    """What `act` returns of a browser, and the browser's notes."""

    async def session() -> tuple[Any, Browser]:
        async with chromium() as browser:
            return await act(browser), browser

    return asyncio.run(session())


async def settle(browser: Browser) -> str:
    """The title, once what the page started had time to end."""
    await asyncio.sleep(0.3)
    return str(await browser.run("document.title"))


def test_what_rows_names_and_settings_hold_is_shown_and_never_run(tmp_path: Path) -> None:
    path = hostile_page(tmp_path / "run")

    async def act(browser: Browser) -> tuple[str, str, list[tuple[str, int]], list[str], list[str]]:
        await browser.open(path)
        shown = await browser.run(_HOVER)
        await browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        text = await browser.run("document.body.innerText.replace(/\\s+/g, ' ')")
        elements = await browser.run("[...new Set([...document.querySelectorAll('*')].map((one) => one.localName))]")
        return await settle(browser), text, shown, elements, await browser.run("[...document.links].map((one) => one.href)")

    (title, text, shown, elements, links), browser = lead(act)
    assert title == "6 of 60 instructions – divsel report"
    assert (browser.requests, browser.blocked, browser.dialogs, browser.errors) == ([], [], [], [])
    assert links == ["https://arxiv.org/abs/2409.11378"]
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "input", "textarea"} & set(elements)
    for payload in (*PAYLOADS, HOSTILE):
        assert " ".join(payload.split()) in text
    assert len(shown) == 60
    assert [harmful for _, harmful in shown if harmful] == []
    hovered = " ".join(words for words, _ in shown)
    for payload in PAYLOADS:
        assert "".join(payload.split())[:40] in "".join(hovered.split())


def test_a_mouse_on_a_point_of_the_map_shows_the_beginning_of_its_prompt(tmp_path: Path) -> None:
    path = hostile_page(tmp_path / "run")

    async def act(browser: Browser) -> tuple[str, str]:
        await browser.open(path, dark=True)
        place = await browser.run("""(() => {
            const figure = document.getElementById("figure-map");
            figure.scrollIntoView({block: "center"});
            const box = figure.querySelector(".nsewdrag").getBoundingClientRect(), {xaxis, yaxis} = figure._fullLayout;
            const trace = figure._fullData.find((one) => one.meta === "selected");
            return [box.left + xaxis.d2p(trace.x[0]), box.top + yaxis.d2p(trace.y[0])];
        })()""")
        await browser.point_at(*place)
        for _ in range(50):
            label = await browser.run("document.querySelector('#figure-map .hoverlayer').textContent")
            if label:
                break
            await asyncio.sleep(0.2)
        await browser.click(*place)
        return label, await settle(browser)

    (label, title), browser = lead(act)
    assert label.startswith("cluster ")
    assert "<script>alert(1)</script></script><imgsrc=xonerror=alert(2)>" in "".join(label.split())
    assert (title, browser.requests, browser.dialogs) == ("6 of 60 instructions – divsel report", [], [])


def test_the_same_rows_do_run_in_a_page_without_protection(tmp_path: Path) -> None:
    """The control: in this browser each of them does what the report keeps it from doing."""

    async def act(browser: Browser) -> tuple[list[str], list[int]]:
        titles, asked = [], []
        for number, payload in enumerate((*RUNNING, *ASKING)):
            page = tmp_path / f"{number}.html"
            page.write_text(f"<!doctype html><title>quiet</title><p>{payload}</p>", encoding="utf-8")
            before = len(browser.requests)
            await browser.open(page)
            titles.append(await settle(browser))
            asked.append(sum(url.startswith(ELSEWHERE) for url in browser.requests[before:]))
        return titles, asked

    (titles, asked), _ = lead(act)
    assert titles == ["fired"] * len(RUNNING) + ["quiet"] * len(ASKING)
    assert asked == [0] * len(RUNNING) + [1] * len(ASKING)


def test_a_map_whose_texts_were_not_escaped_has_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the hover texts."""
    monkeypatch.setattr(charts, "hover_text", lambda text: text)
    path = hostile_page(tmp_path / "run")

    async def act(browser: Browser) -> list[tuple[str, int]]:
        await browser.open(path)
        return await browser.run(_HOVER)

    shown, _ = lead(act)
    assert any(harmful for _, harmful in shown)


def test_the_policy_of_the_page_alone_keeps_a_script_from_running(tmp_path: Path) -> None:
    """Should a text ever come through unescaped, it would not run."""
    path = hostile_page(tmp_path / "run")
    broken = tmp_path / "broken.html"
    page = path.read_text(encoding="utf-8").replace("<main>", f"<main>{''.join((*RUNNING, *ASKING))}", 1)
    broken.write_text(page, encoding="utf-8")

    async def act(browser: Browser) -> str:
        await browser.open(broken)
        return await settle(browser)

    title, browser = lead(act)
    assert title != "fired"
    assert browser.requests == []
    assert len(browser.blocked) >= len(ASKING)
    assert any("Content Security Policy" in error for error in browser.errors)


def test_the_settings_on_the_page_are_those_of_the_run(tmp_path: Path) -> None:
    path = hostile_page(tmp_path / "run")

    async def act(browser: Browser) -> str:
        await browser.open(path)
        await browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        return await browser.run("[...document.querySelectorAll('pre')].pop().textContent")

    settings, _ = lead(act)
    assert yaml.safe_load(settings)["embed"]["model"] == EVERYTHING
