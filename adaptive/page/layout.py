"""The page itself: what is where, and what happens when something is pressed."""

from __future__ import annotations

import errno
import itertools
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fastapi
import gradio as gr
import torch

from ..audio.files import AudioError
from . import markup
from .composing import LABELS, Composed, Wish, compose, cut_windows
from .jobs import Step, Stopping
from .matching import FEATURES, Search, match
from .server import Check
from .songs import MOST_BYTES, Refused, Song, in_words
from .strip import SCRIPT, TEMPLATE, place, problem_value, strip_value
from .studio import EXAMPLE_COUNT, Studio

CSS = Path(__file__).with_name("page.css")
FONTS = ["system-ui", "sans-serif"]  # the visitor's own: none is loaded
NUMBERS = itertools.count(1)
MOST_SEARCHED = 180  # seconds: what a search takes grows with them

T = TypeVar("T")

INTRO = """# Adaptive window
Two songs in, a new {window:g} s pattern out. Choose {clip:g} s of each song by dragging the frame over its waveform;
then **Compose**, or look with **Match** whether song B occurs in song A."""

TRAIN = """Training takes hours and is done on the command line, with a folder of your songs:

```sh
adaptive-window train --data SONGS --out RUN
adaptive-window serve --checkpoint RUN/best.safetensors
```

This page composes with `{weights}` on the codec `{codec}`."""


def build_app(studio: Studio, check: Check | None) -> fastapi.FastAPI:
    """The page as an ASGI application; `check` says whether a name and a password let somebody in."""
    app = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    page = build_page(studio)
    page.queue(max_size=studio.waiting, default_concurrency_limit=studio.jobs.count, api_open=False)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=check,
        show_error=False,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        pwa=False,
        enable_monitoring=False,
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css_paths=CSS,
    )


def build_page(studio: Studio) -> gr.Blocks:
    with gr.Blocks(title="Adaptive window", analytics_enabled=False) as page:
        gr.Markdown(INTRO.format(window=studio.engine.window_seconds, clip=studio.clip_seconds))
        with gr.Row():
            songs = [song_column(studio, label) for label in LABELS]
        examples(studio, [column.audio for column in songs])
        inputs = [part for column in songs for part in (column.song, column.strip)]
        with gr.Tabs():
            with gr.Tab("Compose"):
                compose_tab(studio, inputs)
            with gr.Tab("Match"):
                match_tab(studio, inputs)
            with gr.Tab("Train"):
                gr.Markdown(TRAIN.format(weights=studio.weights, codec=studio.engine.codec.name))
    return page


@dataclass(frozen=True)
class SongColumn:
    """Where one song goes in: `song` holds what the server knows of it, `strip` where its clip begins."""

    audio: gr.Audio
    song: gr.State
    strip: gr.HTML


def song_column(studio: Studio, label: str) -> SongColumn:
    with gr.Column(elem_classes="song", elem_id=label.lower().replace(" ", "-")):
        audio = gr.Audio(
            label=label,
            sources=["upload", "microphone"],
            type="filepath",
            editable=False,
            waveform_options=gr.WaveformOptions(show_recording_waveform=False),
            buttons=[],
        )
        strip = gr.HTML(None, html_template=TEMPLATE, js_on_load=SCRIPT, label=f"Clip of {label}")
        song = gr.State(None)

    def read(name: str | None, request: gr.Request, progress: gr.Progress = gr.Progress()) -> tuple[Any, Any]:  # noqa: B008 - the toolkit's way
        if name is None:
            return None, None
        path = Path(name)
        try:
            studio.uploads.use(session_of(request), path)
            found = attempt(studio, "read", lambda step: studio.read_song(path, step), progress)
        except Refused as refusal:
            return None, problem_value(str(refusal))
        return found, strip_value(label, found, studio.clip_seconds)

    audio.change(read, audio, [song, strip], show_progress_on=strip, **job(studio))
    return SongColumn(audio, song, strip)


def examples(studio: Studio, audios: list[gr.Audio]) -> None:
    with gr.Row(equal_height=True):
        number = gr.Dropdown(
            [(f"Example {k + 1}", k) for k in range(EXAMPLE_COUNT)], value=0, label="Synthesized pair of songs", scale=3
        )
        button = gr.Button("Use this example", elem_id="use-example", scale=1)
    problem = gr.HTML()

    def take(number: int, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008 - the toolkit's way
        try:
            paths = attempt(studio, "example", lambda step: studio.example(number, step), progress)
        except Refused as refusal:
            return gr.skip(), gr.skip(), markup.problem(str(refusal))
        return *map(str, paths), ""

    button.click(take, number, [*audios, problem], show_progress_on=problem, **job(studio))


def compose_tab(studio: Studio, inputs: list[Any]) -> None:
    pairs = range(studio.engine.agent.num_pairs)
    choices = [("The best pair", "best"), *((f"Pair {k}", str(k)) for k in pairs), ("The mean of all pairs", "mean")]
    pick = gr.Radio(choices, value="best", label="What to hear")
    button = gr.Button("Compose", variant="primary", elem_id="compose")
    pattern = gr.HTML(elem_id="composed")
    picture = gr.Plot(label="Windows over both songs", show_label=False, visible=False, elem_id="picture")
    table = gr.HTML(elem_id="table")
    windows = gr.HTML(elem_id="windows")
    made = gr.State(None)

    def run(
        song_a: Song | None,
        strip_a: Any,
        song_b: Song | None,
        strip_b: Any,
        pick: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - the toolkit's way
    ) -> tuple[Any, ...]:
        try:
            songs, at = clips(studio, (song_a, song_b), (strip_a, strip_b), session_of(request))
            wish, folder = Wish(songs, at, pick), studio.uploads.job(session_of(request))
            found = attempt(studio, "compose", lambda step: compose(studio.engine, wish, folder, step), progress)
        except Refused as refusal:
            return markup.problem(str(refusal)), gr.Plot(visible=False), "", "", None
        picture = gr.Plot(found.picture, visible=True)
        return markup.composed_pattern(found), picture, markup.composed_table(found), "", found

    def cut(found: Composed | None, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008 - the toolkit's way
        if found is None:
            return ""
        try:
            files = attempt(studio, "windows", lambda step: cut_windows(studio.engine, found, step), progress)
        except Refused as refusal:
            return markup.problem(str(refusal))
        return markup.window_players(files)

    composed = button.click(
        run, [*inputs, pick], [pattern, picture, table, windows, made], show_progress_on=pattern, **job(studio)
    )
    composed.then(cut, made, windows, **job(studio))


def match_tab(studio: Studio, inputs: list[Any]) -> None:
    clip, window = studio.clip_seconds, studio.engine.window_seconds
    gr.Markdown(
        f"Does the first {window:g} s of song B's frame occur in song A, and where, and how fast? Song A is searched "
        "from where its frame begins."
    )
    with gr.Row():
        features = gr.Dropdown(list(FEATURES), value=next(iter(FEATURES)), label="What is compared")
        seconds = gr.Slider(clip, MOST_SEARCHED, value=clip, step=1, label="Seconds of song A to search")
    button = gr.Button("Match", variant="primary", elem_id="match")
    verdict = gr.HTML(elem_id="matched")
    picture = gr.Plot(label="Matched windows over both songs", show_label=False, visible=False, elem_id="match-picture")

    def run(
        song_a: Song | None,
        strip_a: Any,
        song_b: Song | None,
        strip_b: Any,
        features: str,
        seconds: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - the toolkit's way
    ) -> tuple[Any, ...]:
        try:
            songs, at = clips(studio, (song_a, song_b), (strip_a, strip_b), session_of(request))
            if not clip <= seconds <= MOST_SEARCHED:  # the browser may send anything
                raise Refused(f"Between {clip:g} and {MOST_SEARCHED} s of song A can be searched.")
            search = Search(songs, at, FEATURES[features], seconds)
            folder = studio.uploads.job(session_of(request))
            found = attempt(studio, "match", lambda step: match(studio.engine, search, folder, step), progress)
        except Refused as refusal:
            return markup.problem(str(refusal)), gr.Plot(visible=False)
        return markup.matched(found), gr.Plot(found.picture, visible=True)

    button.click(run, [*inputs, features, seconds], [verdict, picture], show_progress_on=verdict, **job(studio))


def job(studio: Studio) -> dict[str, Any]:
    """All events that work for long wait in one queue, from which as many run as there are cores for them."""
    return {"concurrency_id": "job", "concurrency_limit": studio.jobs.count, "api_visibility": "private"}


def session_of(request: gr.Request) -> str:
    return str(request.session_hash)


def clips(
    studio: Studio, songs: tuple[Song | None, Song | None], strips: tuple[Any, Any], session: str
) -> tuple[tuple[Song, Song], tuple[float, float]]:
    """Both songs, and where their clips begin.

    Raises:
        Refused: a song is missing, or was removed meanwhile, or has no such place.
    """
    found, at = [], []
    for song, strip, label in zip(songs, strips, LABELS, strict=True):
        if song is None:
            raise Refused(f"{label} is missing: upload it, record it, or use an example.")
        if not song.path.is_file():
            raise Refused(f"{label} has been removed after {studio.keep_minutes:g} minutes; upload it again.")
        studio.uploads.use(session, song.path)
        found.append(song)
        at.append(place(strip, song, label, studio.clip_seconds))
    return (found[0], found[1]), (at[0], at[1])


def attempt(studio: Studio, kind: str, work: Callable[[Step], T], progress: gr.Progress) -> T:
    """What the job gives.

    Raises:
        Refused: with a sentence for whatever may go wrong; of what is our mistake the log has the traceback.
    """
    try:
        return studio.jobs.run(kind, work, lambda share, text: progress(share, desc=text))
    except Refused:
        raise
    except Stopping as stopping:
        raise Refused("The page is about to restart and takes no more jobs; try again in a minute.") from stopping
    except AudioError as error:
        raise Refused(in_words(error.path.name, error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise Refused("This machine's memory does not suffice for that; try again later.") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise Refused("This machine's disk is full; try again later.") from error
        number = next(NUMBERS)
        print(f"problem {number} of the page, in a job of kind {kind}:", file=sys.stderr)
        traceback.print_exc()
        raise Refused(
            f"Something went wrong on this machine. Whoever runs it finds it as problem {number} in the log."
        ) from error
