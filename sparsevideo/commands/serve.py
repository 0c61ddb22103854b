"""`sparsevideo serve`: a web page, with an API, that classifies uploaded files with a trained network."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from sparsevideo.classifier import Classifier, load
from sparsevideo.commands.timeline import timeline_run
from sparsevideo.commands.visualize import load_view
from sparsevideo.config import parse_views
from sparsevideo.data.inputs import make_inputs
from sparsevideo.io.backends import open_video
from sparsevideo.reports import visualize
from sparsevideo.reports.timeline import SegmentMerger

_VIEWS = {2: ["1x1", "1x3"], 3: ["1x1", "4x1", "4x3", "10x3"]}  # by the dimensions of the network
_NAMES = {2: "image", 3: "video"}
# The browser requests nothing from other servers. Trimming a video there would need a program from one.
_SAME_ORIGIN = (
    '<meta http-equiv="Content-Security-Policy"'
    " content=\"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:\">"
)
_CSS = 'button[aria-label="Trim video to selection"] { display: none } video { max-height: 360px; object-fit: contain }'


def serve_run(
    checkpoint: str,
    *,
    classes: Sequence[str] | None,
    host: str,
    port: int,
    max_size_mb: float,
    max_duration_s: float,
    keep_s: float,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        checkpoint: Source of `sparsevideo.load`.
        classes: Class names, for a checkpoint without them.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        max_size_mb: Largest upload, in 2^20 bytes.
        max_duration_s: Longest video.
        keep_s: Seconds after which uploads and pictures are deleted.

    Raises:
        ImportError: The extra `[web]` is not installed.
        OSError: The address is in use or not of this machine, or there is no such checkpoint.
        ValueError: The checkpoint has no class names.
    """
    with TemporaryDirectory(prefix="sparsevideo-serve-") as folder:
        # Set before gradio loads. It calls its own page at the start, which a proxy cannot reach.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "no_proxy": "*"}
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{error}; the page needs the extra [web]: pip install '.[web]'") from error
        port = _free_port(host, port)
        classifier = load(checkpoint, classes=classes)
        name = _NAMES[classifier.model.ndim]
        limits = f"Up to {max_size_mb:g} MB{f' and {max_duration_s:g} s' if name == 'video' else ''}."
        page = _page(
            classifier,
            title=f"sparsevideo: {Path(checkpoint).name}",
            note=f"{limits} Files are deleted after {keep_s:g} s. One file at a time goes through the network.",
            check=lambda path: _check(path, name, max_duration_s),
        )
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=int(max_size_mb * 2**20),
            share=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=["api", "settings"],
            head=_SAME_ORIGIN,
            css=_CSS,
            prevent_thread_lock=True,
            show_error=True,
            quiet=True,
        )
        print(f"{checkpoint}: {name} network of {len(classifier.classes)} classes at {url}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(min(keep_s / 2, 10))
                _delete_old_files(Path(folder), keep_s)
        page.close(verbose=False)


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0; raise OSError if nobody can listen on it."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
            return server.getsockname()[1]
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise OSError(f"{host}:{port}: {reason}; choose another --port or --host") from error


def _delete_old_files(folder: Path, keep_s: float) -> None:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # gradio renames a file at the end of its upload
            if path.is_file() and time.time() - path.stat().st_ctime > keep_s:
                path.unlink()


def _check(path: str | None, name: str, max_duration_s: float) -> None:
    """Raise ValueError or OSError, whose messages are for the user, if the upload is absent or too long."""
    if path is None:
        raise ValueError(f"no {name}; upload or record one first")
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: has been deleted; upload it again")
    if name == "video":
        with open_video(path) as video:
            duration_s = video.info.duration_s
        if duration_s > max_duration_s:
            raise ValueError(f"{path}: lasts {duration_s:.1f} s; the limit is {max_duration_s:g} s")


def _page(classifier: Classifier, *, title: str, note: str, check: Callable[[str | None], None]) -> Any:
    """Return the page as gradio's Blocks; `check` raises an error for an upload that is refused."""
    import gradio

    name = _NAMES[classifier.model.ndim]
    component: Any = {"image": gradio.Image, "video": gradio.Video}[name]
    test = classifier.config.test
    views = f"{test.clips}x{test.crops}"
    choices = sorted({views, *_VIEWS[classifier.model.ndim]}, key=parse_views)
    classifier.config = replace(classifier.config, test=replace(test, scores="softmax"))  # the bars are shares of 1

    async def stored(path: str) -> str:
        if "://" in path:
            raise gradio.Error(f"{path}: is an address; upload the file", print_exception=False)
        return path

    @contextmanager
    def checked(path: str | None) -> Iterator[str]:
        try:
            check(path)
            yield str(path)
        except (ValueError, OSError) as error:
            message = str(error).replace(str(path), Path(str(path)).name)  # without the folder on the server
            raise gradio.Error(message, print_exception=False) from error

    def predict(path: str | None, views: str) -> dict[str, float]:
        with checked(path) as file:
            prediction = classifier.predict(file, views=views)
        return dict(zip(prediction.labels, prediction.scores, strict=True))

    def sampling(path: str | None) -> list[str]:
        with checked(path) as file:
            return _draw_sampling(classifier, file)

    def timeline(path: str | None) -> tuple[str, list[tuple[float, float, str, float]]]:
        folder = _new_folder()
        with checked(path) as file:
            segments, truncated_because = timeline_run(classifier, file, SegmentMerger(classifier.classes), folder)
            if truncated_because:
                gradio.Warning(f"{Path(file).name}: the timeline ends early: {truncated_because}")
        rows = [(each.start_s, each.end_s, each.label, round(each.score, 4)) for each in segments]
        return str(folder / "timeline.png"), rows

    def picture(text: str) -> gradio.Image:
        return gradio.Image(label=text, show_label=False, interactive=False, buttons=["fullscreen", "download"])

    has_timeline = name == "video" and classifier.config.data.sampling == "consecutive"
    shared = {"concurrency_limit": 1, "concurrency_id": "network"}
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}\n{note}")
        with gradio.Row():
            with gradio.Column():
                upload = component(label=name.capitalize(), sources=["upload", "webcam"])
                # The functions get the file as it is. Gradio decodes and converts images, and it fetches addresses.
                upload.preprocess = lambda file: file and file.path
                upload.async_move_resource_to_block_cache = stored
                with gradio.Row():
                    dropdown = gradio.Dropdown(choices, value=views, label="Views: clips x crops")
                    button = gradio.Button("Classify", variant="primary")
            label = gradio.Label(label="Classes", num_top_classes=5)
        with gradio.Tabs():
            with gradio.Tab("Sampling points"):
                strip = picture("Sampling points")
            with gradio.Tab("Density"):
                density = picture("Density")
            if has_timeline:
                with gradio.Tab("Timeline"):
                    plot = picture("Timeline")
                    headers = ["start in s", "end in s", "class", "score"]
                    segments = gradio.Dataframe(headers=headers, label="Segments", interactive=False)
        results = [label, strip, density]
        answered = button.click(predict, [upload, dropdown], label, api_name="predict", **shared)
        answered = answered.success(sampling, upload, [strip, density], api_name="sampling", **shared)
        if has_timeline:
            results += [plot, segments]
            answered.success(timeline, upload, [plot, segments], api_name="timeline", **shared)
        upload.change(lambda: [None] * len(results), None, results, api_visibility="private", queue=False)
    return page


def _draw_sampling(classifier: Classifier, path: str) -> list[str]:
    """Draw where the network samples in the middle clip; return the paths of the pictures."""
    records = make_inputs([path], _NAMES[classifier.model.ndim], classifier.classes)
    view = load_view(classifier.config, records, 0, classifier.model.ndim)
    trace = visualize.trace_sampling(classifier.model, view.x)
    folder = _new_folder()
    visualize.save_strip(folder / "strip.png", view.frames, trace, title=Path(path).name)
    visualize.save_density(folder / "density.png", view.frames, trace, title=Path(path).name)
    return [str(folder / "strip.png"), str(folder / "density.png")]


def _new_folder() -> Path:
    """Return a new folder among the uploads, whose name no other user can guess."""
    return Path(mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
