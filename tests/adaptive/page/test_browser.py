"""The page in a browser: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from command import run
from page_server import CLIP, WINDOW, Server, served_files, serving

pytestmark = pytest.mark.proof
SLOW = 60_000  # milliseconds that anything may take: other tests may be at work on this machine

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine (apt-get install chromium)", allow_module_level=True)
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402 - not without a browser

HEARD = """async (player) => {
    const bytes = await (await fetch(player.src)).arrayBuffer();
    const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
    const samples = sound.getChannelData(0);
    await player.play();
    for (let k = 0; k < 300 && player.currentTime <= 0.2; k++) await new Promise((done) => setTimeout(done, 100));
    player.pause();
    return {
        seconds: sound.duration, shown: player.duration, played: player.currentTime,
        rms: Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length),
    };
}"""


LENGTHS = """players => Promise.all(players.map((player) => player.readyState ? player.duration
    : new Promise((done) => player.onloadedmetadata = () => done(player.duration))))"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return served_files(tmp_path_factory.mktemp("browser"), "first song.wav", "second.wav")


@pytest.fixture(scope="module")
def server(files):
    with serving("--checkpoint", files / "small.safetensors") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        arguments += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """An opened page; that it loads nothing from elsewhere and complains of nothing is part of every test."""
    opened, elsewhere, complaints = browser.new_page(viewport={"width": 1200, "height": 900}), [], []
    opened.set_default_timeout(SLOW)
    expect.set_options(timeout=SLOW)
    opened.on("request", lambda asked: is_ours(asked.url, server.url) or elsewhere.append(asked.url))
    opened.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(server.url)
    opened.wait_for_selector("#compose")
    yield opened
    opened.close()
    assert not elsewhere
    assert not [text for text in complaints if "status of" not in text]


def is_ours(url: str, server: str) -> bool:
    return url.startswith((server + "/", "data:", "blob:"))


def give(page: Page, song: str, path: Path) -> None:
    page.set_input_files(f"#{song} input[type=file]", path)


def give_both(page: Page, files: Path) -> None:
    give(page, "song-a", files / "first song.wav")
    give(page, "song-b", files / "second.wav")
    for song in ("song-a", "song-b"):
        page.wait_for_selector(f"#{song} input.frame")


def drag(page: Page, song: str, share: float) -> float:
    """Drags the frame by a share of the waveform's width; the second at which the clip begins then."""
    box = page.locator(f"#{song} input.frame").bounding_box()
    assert box is not None
    x, y = box["x"] + 10, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + share * box["width"], y, steps=5)
    page.mouse.up()
    return float(page.locator(f"#{song} input.frame").input_value())


def test_two_songs_to_a_pattern(page, files, tmp_path, monkeypatch):
    """Upload, drag, compose, see, hear, take home: what is taken home is what the command writes."""
    give_both(page, files)
    at = drag(page, "song-a", 0.4), drag(page, "song-b", 0.2)
    assert at[0] == pytest.approx(0.4 * 20, abs=0.3), "the frame goes where the pointer does"
    assert at[1] == pytest.approx(0.2 * 15, abs=0.3)
    assert page.locator("#song-a .where").inner_text().startswith("0:0")
    page.get_by_label("Pair 1").check()
    page.click("#compose")
    page.wait_for_selector("#pattern audio")
    expect(page.locator("#picture .js-plotly-plot")).to_be_visible()
    assert page.locator("#table tbody tr").count() == 3

    heard = page.locator("#pattern audio").first.evaluate(HEARD)
    for name, link in (("page.wav", "Download WAV"), ("page.json", "Download JSON")):
        with page.expect_download() as download:
            page.get_by_role("link", name=link).click()
        download.value.save_as(tmp_path / name)
    sound = soundfile.read(tmp_path / "page.wav")[0]
    assert heard["seconds"] == pytest.approx(WINDOW, abs=0.01)
    assert heard["shown"] == pytest.approx(WINDOW, abs=0.01)
    assert heard["played"] > 0.2
    assert heard["rms"] == pytest.approx(math.sqrt((sound**2).mean()), rel=0.02)

    monkeypatch.chdir(files)
    options = [
        "-o",
        "pattern.wav",
        "--checkpoint",
        "small.safetensors",
        "--pick",
        1,
        "--at",
        at[0],
        "--at-target",
        at[1],
    ]
    assert run("compose", "first song.wav", "second.wav", *options, "--device", "cpu") == 0
    assert (tmp_path / "page.wav").read_bytes() == Path("pattern.wav").read_bytes()
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / "page.json", Path("pattern.json")))
    assert {**ours, "input": "first song.wav"} == theirs, "uploads keep their names, but for what file systems mind"

    page.wait_for_selector("#windows audio >> nth=11")
    lengths = page.locator("#windows audio").evaluate_all(LENGTHS)
    assert len(lengths) == 12
    assert all(length == pytest.approx(WINDOW, abs=0.05) or WINDOW < length <= 1.5 * WINDOW for length in lengths)


def test_the_picture(page, files):
    """Zoomed by dragging; seconds under the pointer; the windows of a pair in words."""
    page.click("#use-example")
    for song in ("song-a", "song-b"):
        page.wait_for_selector(f"#{song} input.frame")
    page.click("#compose")
    plot = page.locator("#picture .js-plotly-plot")
    expect(plot).to_be_visible()
    expect(plot.locator(".legend .traces")).to_have_count(3)
    layout = "plot => plot._fullLayout.xaxis.range.map(Number)"
    assert plot.evaluate(layout) == [0, CLIP]
    plot.evaluate("plot => plot.scrollIntoView()")
    area = plot.locator(".nsewdrag").last.bounding_box()  # song A's
    assert area is not None
    page.mouse.move(area["x"] + 0.93 * area["width"], area["y"] + 6)
    expect(plot.locator(".hoverlayer")).to_contain_text("s of the clip")
    page.mouse.move(area["x"] + 0.25 * area["width"], area["y"] + 20)
    page.mouse.down()
    page.mouse.move(area["x"] + 0.75 * area["width"], area["y"] + 20, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    low, high = plot.evaluate(layout)
    assert (low, high) == pytest.approx((0.25 * CLIP, 0.75 * CLIP), abs=0.1)


def test_a_song_is_found_in_itself(page, files):
    give(page, "song-a", files / "first song.wav")
    give(page, "song-b", files / "first song.wav")
    for song in ("song-a", "song-b"):
        page.wait_for_selector(f"#{song} input.frame")
    drag(page, "song-b", 0.2)
    page.get_by_role("tab", name="Match").click()
    page.get_by_label("Seconds of song A to search").first.fill("20")
    page.keyboard.press("Enter")
    page.click("#match")
    page.wait_for_selector("#matched audio")
    expect(page.locator("#matched")).to_contain_text("Song B occurs in Song A: Song A from ")
    expect(page.locator("#match-picture .js-plotly-plot")).to_be_visible()
    heard = page.locator("#matched audio").first.evaluate(HEARD)
    assert heard["seconds"] == pytest.approx(3 * WINDOW + 1, abs=0.05)
    assert heard["rms"] > 0.01


@pytest.mark.parametrize("kind", ["text", "short", "silent", "truncated"])
def test_mistakes_are_sentences(page, files, kind):
    path = files / {"text": "notes.mp3"}.get(kind, f"{kind}.wav")
    if kind == "text":
        path.write_text("no song\n" * 100)
    elif kind == "truncated":
        whole = (files / "second.wav").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        soundfile.write(path, [0.0 if kind == "silent" else 0.1] * (16_000 * (9 if kind == "silent" else 3)), 16_000)
    give(page, "song-b", files / "second.wav")
    give(page, "song-a", path)
    alert = page.locator("#song-a [role=alert]")
    expect(alert).to_contain_text(path.name)
    assert str(files) not in page.content()
    assert "Traceback" not in page.content()
    page.wait_for_selector("#song-b input.frame")
    page.click("#compose")
    expect(page.locator("#composed [role=alert]")).to_contain_text("Song A is missing")


def test_nothing_is_given(page):
    page.click("#compose")
    expect(page.locator("#composed [role=alert]")).to_have_text(
        "Song A is missing: upload it, record it, or use an example."
    )


def test_too_large(page, files):
    with (files / "large.wav").open("wb") as file:
        file.truncate(101 * 2**20)
    give(page, "song-a", files / "large.wav")
    expect(page.locator("body")).to_contain_text("100")
    expect(page.locator("[data-testid=toast-body]")).to_be_visible()
    assert page.locator("#song-a input.frame").count() == 0


def test_by_keyboard(page, files):
    """The frame moves by arrow keys and says where it is; every control has a name."""
    give_both(page, files)
    frame = page.get_by_role("slider", name="Second at which the clip of Song A begins")
    frame.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert frame.input_value() == "0.2"
    assert frame.get_attribute("aria-valuetext") == "0:00.2 to 0:06.2 of 0:20.0"
    page.keyboard.press("End")
    assert frame.input_value() == "14"
    page.locator("#compose").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#pattern audio")
    expect(page.locator("#pattern")).to_contain_text("from 14.00 s on")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=file]), audio, select")]
            .filter(e => e.offsetParent && !(e.innerText || e.ariaLabel || e.title || e.labels?.length
                || e.closest("label")?.innerText || e.closest("#song-a, #song-b")?.querySelector("audio") === e))
            .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert not nameless


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone(browser, server, files, dark):
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(SLOW)
    page.goto(server.url)
    page.wait_for_selector("#compose")
    give_both(page, files)
    page.click("#compose")
    page.wait_for_selector("#windows audio >> nth=11")
    widths = page.evaluate("[document.documentElement.scrollWidth, document.querySelector('#compose').clientWidth]")
    assert widths[0] <= 390, "nothing reaches beyond the screen"
    assert widths[1] > 250
    luminance = "e => getComputedStyle(e).color.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765"
    text = page.locator("#pattern p").first.evaluate(luminance)
    assert (text > 0.7) == dark
    page.close()


def test_a_recording(page, files):
    """Chromium's own microphone beeps once a second."""
    page.locator("#song-a").get_by_role("button", name="Record audio").click()
    page.locator("#song-a button.record").click()
    page.wait_for_timeout(1000 * (CLIP + 3))
    page.locator("#song-a button.stop-button").click()
    page.wait_for_selector("#song-a input.frame")
    give(page, "song-b", files / "second.wav")
    page.wait_for_selector("#song-b input.frame")
    page.click("#compose")
    page.wait_for_selector("#pattern audio")
