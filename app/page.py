"""The model as a web page of Gradio: `wavcse app`, whose options and help are in `app/arguments.py`."""

from __future__ import annotations

from wavcse.app.arguments import APP, AppArguments

if __name__ == "__main__":
    APP.answer()  # before the imports below, which take seconds

import functools
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from wavcse.app.answers import Answers
from wavcse.settings.command import DONE
from wavcse.settings.libraries import optional_library

EXTRA = "app"
KEPT_S, LOOK_S = 600, 60  # an uploaded file is deleted when a look finds it older, and all when the program ends
UPLOADS = "GRADIO_TEMP_DIR"
STYLE = """
table { border-collapse: collapse; } caption { text-align: left; font-weight: 600; }
td, th { padding: 0.2em 0.8em; text-align: left; } meter { width: 12em; } audio { height: 2em; }
a { text-decoration: underline; }
"""


def page_of(answers: Answers) -> Any:
    """The page, `gradio.Blocks`: a tab for each thing that the model and what goes with it can answer."""
    gradio = optional_library("gradio", EXTRA)
    with gradio.Blocks(title="wavCSE", analytics_enabled=False, delete_cache=(LOOK_S, KEPT_S)) as page:
        gradio.Markdown(f"# wavCSE\n{_taken(answers)}")
        with gradio.Tabs():
            if answers.has_heads:
                _tab(gradio, "Labels", "Name labels", answers.labels)
            _tab(gradio, "Compare", "Compare", answers.compare, ("First recording", "Second recording"))
            if answers.table is not None:
                _tab(gradio, "Nearest", "Find the nearest clips", answers.nearest)
            _tab(gradio, "Vector", "Make the vector", answers.vector)
    return page


def _taken(answers: Answers) -> str:
    args = answers.args
    return (
        f"Record speech or choose a file (wav, flac, ogg, opus, mp3) of at most {args.max_seconds:g} s and "
        f"{args.max_megabytes:g} MB. Recordings are deleted after about {KEPT_S // 60} minutes."
    )


def _tab(
    gradio: ModuleType, name: str, verb: str, answer: Callable[..., str], recordings: tuple[str, ...] = ("Recording",)
) -> None:
    """A tab that takes recordings and shows what `answer` says of them; its name in lower case is that of the API."""

    @functools.wraps(answer)
    def answered(*given: str | None) -> str:
        try:
            return answer(*given)
        except ValueError as error:  # else the page would say "Error" alone
            raise gradio.Error(str(error), duration=None, print_exception=False) from error

    with gradio.Tab(name):
        with gradio.Row():
            inputs = [
                gradio.Audio(sources=["upload", "microphone"], type="filepath", label=label, editable=False, buttons=[])
                for label in recordings
            ]
        button = gradio.Button(verb, variant="primary")
        shown = gradio.HTML(label=name, elem_id=f"{name.lower()}-answer")
        # One at a time over all tabs: threads of one model would only wait for each other.
        button.click(answered, inputs, shown, api_name=name.lower(), concurrency_id="model", concurrency_limit=1)


@contextmanager
def _uploads_in(place: str) -> Iterator[None]:
    """Where Gradio puts what is uploaded, which it reads from the environment at each upload."""
    before = os.environ.get(UPLOADS)
    os.environ[UPLOADS] = place
    try:
        yield
    finally:
        os.environ.pop(UPLOADS)
        if before is not None:
            os.environ[UPLOADS] = before


@contextmanager
def served(args: AppArguments) -> Iterator[str]:
    """Serve the page while the context lasts; gives its address. Uploads lie in a folder that ends with it."""
    gradio = optional_library("gradio", EXTRA)
    page = page_of(Answers(args))
    with tempfile.TemporaryDirectory() as place, _uploads_in(place):
        _, address, _ = page.launch(
            server_name=args.host,
            server_port=args.port or None,
            max_file_size=int(args.max_megabytes * 1e6),
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=STYLE,
            footer_links=[],
            ssr_mode=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        try:
            yield address
        finally:
            page.close(verbose=False)


@APP.main
def main(args: AppArguments) -> int:
    """The command line."""
    with served(args) as address:
        print(f"{args.model}: {address} (end with Ctrl-C)", flush=True)
        wait_for_signal()
    return DONE


def wait_for_signal() -> None:
    """Never ends by itself; a signal raises, and `Program.main` answers it."""
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
