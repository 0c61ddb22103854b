"""`sparsevideo serve`: a web page, with an API, that classifies uploaded files with a trained network."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from sparsevideo import build
from sparsevideo.classifier import Classifier, load
from sparsevideo.data import transforms
from sparsevideo.io.backends import open_video
from sparsevideo.io.errors import DecodeError
from sparsevideo.reports import visualize

_VIEWS = {2: ["1x1", "1x3"], 3: ["1x1", "4x1", "4x3", "10x3"]}  # by the dimensions of the network
_NAMES = {2: "image", 3: "video"}


def serve_run(
    checkpoint: str, *, host: str, port: int, max_size_mb: float, max_duration_s: float, keep_s: float
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        checkpoint: Source of `sparsevideo.load`.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        max_size_mb: Largest upload, in 10^6 bytes.
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
        classifier = load(checkpoint)
        name = _NAMES[classifier.model.ndim]
        limits = f"Up to {max_size_mb:g} MB{f' and {max_duration_s:g} s' if name == 'video' else ''}."
        page = _page(
            classifier,
            title=f"sparsevideo: {Path(checkpoint).name}",
            note=f"{limits} Files are deleted after {keep_s:g} s. One file at a time goes through the network.",
            check=lambda path: _check(path, name, max_size_mb, max_duration_s),
        )
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=int(max_size_mb * 1e6),
            share=False,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=["api", "settings"],
            prevent_thread_lock=True,
            inbrowser=False,
            quiet=True,
        )
        print(f"{checkpoint}: {name} network of {len(classifier.classes)} classes at {url}", flush=True)
        try:
            while True:
                time.sleep(min(keep_s / 2, 10))
                _delete_old_files(Path(folder), keep_s)
        except KeyboardInterrupt:
            page.close()


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


def _check(path: str | None, name: str, max_size_mb: float, max_duration_s: float) -> None:
    """Raise ValueError or OSError, whose messages are for the user, if this is not a file within the limits."""
    if path is None:
        raise ValueError(f"no {name}; upload or record one first")
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: has been deleted; upload it again")
    size_mb = Path(path).stat().st_size / 1e6
    if size_mb > max_size_mb:
        raise ValueError(f"{path}: has {size_mb:.1f} MB; the limit is {max_size_mb:g} MB")
    if name == "video":
        with closing(open_video(path)) as video:
            duration_s = video.info.duration_s
        if duration_s > max_duration_s:
            raise ValueError(f"{path}: lasts {duration_s:.1f} s; the limit is {max_duration_s:g} s")


def _page(classifier: Classifier, *, title: str, note: str, check: Callable[[str | None], None]) -> Any:
    """Return the page as gradio's Blocks; `check` raises an error for an upload that is refused."""
    import gradio

    name = _NAMES[classifier.model.ndim]
    test = classifier.config.test
    views = f"{test.clips}x{test.crops}"
    classifier.config = replace(classifier.config, test=replace(test, scores="softmax"))  # the bars are shares of 1
from gradio.events import Dependency

    class Upload(gradio.Video if name == "video" else gradio.Image):  # type: ignore[misc]
        """Input whose value is the path of the uploaded file as it is; gradio decodes and converts files."""

        def get_block_name(self) -> str:
            return name

        def preprocess(self, payload: Any) -> str | None:
            return payload and payload.path

        async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
            if "://" in str(url_or_file_path):
                raise gradio.Error(f"{url_or_file_path}: is an address; upload the file", print_exception=False)
            return await super().async_move_resource_to_block_cache(url_or_file_path)

    def answered(answer: Callable[[], Any], path: str | None) -> Any:
        try:
            check(path)
            return answer()
        except (ValueError, OSError) as error:
            message = str(error) if path is None else str(error).replace(path, Path(path).name)
            raise gradio.Error(message, print_exception=False) from error

    def predict(path: str | None, views: str) -> dict[str, float]:
        prediction = answered(lambda: classifier.predict(str(path), views=views), path)
        return dict(zip(prediction.labels, prediction.scores, strict=True))

    def sampling(path: str | None) -> str:
        return answered(lambda: _save_strip(classifier, str(path)), path)

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}\n{note}")
        with gradio.Row():
            with gradio.Column():
                upload = Upload(label=name, sources=["upload", "webcam"], height=320)
                choices = sorted({views, *_VIEWS[classifier.model.ndim]})
                dropdown = gradio.Dropdown(choices, value=views, label="views", info="clips x crops")
                button = gradio.Button("Classify", variant="primary")
            label = gradio.Label(label="classes", num_top_classes=5)
        strip = gradio.Image(label="sampling points", type="filepath", format="png", interactive=False)
        shared = {"concurrency_limit": 1, "concurrency_id": "network"}
        button.click(predict, [upload, dropdown], label, api_name="predict", **shared).success(
            sampling, upload, strip, api_name="sampling", **shared
        )
        upload.change(lambda: (None, None), None, [label, strip], api_visibility="private", queue=False)
    return page


def _save_strip(classifier: Classifier, path: str) -> str:
    """Draw where the network samples in the middle clip; return the path of the picture."""
    model, config = classifier.model, classifier._config("1x1", 0)
    loader = build.build_test_loader(config, classifier._records([path]), model.ndim, [0], use_index=False)
    item = loader.dataset[0]
    if item["failures"]:
        raise DecodeError(item["failures"][0][2])
    clip = item[_NAMES[model.ndim]][0]  # (3, [T,] S, S) uint8
    inputs = transforms.Normalize(config.data.mean, config.data.std)(clip.unsqueeze(0))
    trace = visualize.trace_sampling(model, inputs[0])
    frames = clip.reshape(3, -1, *clip.shape[-2:]).permute(1, 2, 3, 0).numpy()  # (T, S, S, 3)
    strip = Path(mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "strip.png"
    visualize.save_strip(strip, frames, trace)
    return str(strip)