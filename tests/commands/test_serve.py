"""The web page of `sparsevideo serve`: its answers, limits and messages, in a browser and by its API."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from toy_runs import IMAGE, NANO, interruptible

import sparsevideo
from sparsevideo.cli import FAILED, OK, USAGE, main
from sparsevideo.io import read_frames, write_video

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra [web] is not installed")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None, reason="Chromium or playwright is not installed"
)
# The client of gradio reports its use to its makers, unless these are set.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
LIMITS = ["--max-size=0.5", "--max-duration=7.5"]


@contextmanager
def serving(checkpoint, *options):
    """Start the server; yield its process and the address that it prints."""
    command = [sys.executable, "-m", "sparsevideo", "serve", str(checkpoint), "--port=0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "http_proxy": "http://127.0.0.1:9"}
    with interruptible(command, cwd=ROOT, env=environment) as process:
        line = process.stdout.readline()
        assert " at http://127.0.0.1:" in line, process.stderr.read()
        yield process, line.split(" at ")[1].strip()


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """A network that is sure of itself, so that its timelines have segments."""
    content = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    content["model"]["head.weight"] *= 10
    path = tmp_path_factory.mktemp("sure") / "best.pt"
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint, *LIMITS) as (process, url):
        yield url
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == OK
        assert "serve.py" not in errors  # in no traceback


@pytest.fixture(scope="module")
def classifier(checkpoint):
    return sparsevideo.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def videos(digits):
    return sorted((digits / "videos" / "test").glob("*/*.mp4"))


def bad_file(kind, folder):
    path = folder / f"{kind}.mp4"
    if kind == "audio":
        with av.open(path, "w") as container:
            stream = container.add_stream("aac", rate=44100)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
            frame.rate = 44100
            container.mux([*stream.encode(frame), *stream.encode(None)])
    elif kind == "long":
        write_video(path, np.zeros((200, 64, 64, 3), np.uint8), fps=25)
    else:
        path.write_bytes({"text": b"not a video", "empty": b"", "large": bytes(600_000)}[kind])
    return path


@contextmanager
def unreached_server():
    """Yield the address of a server, and check that nobody has connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


MESSAGES = {
    "text": "text.mp4: does not decode (Invalid data found when processing input); remove it or make it again",
    "empty": "empty.mp4: does not decode (Invalid data found when processing input); remove it or make it again",
    "audio": "audio.mp4: holds no video stream with a known codec; remove it or make it again",
    "long": "long.mp4: lasts 8.0 s; the limit is 7.5 s",
}


def request(url, data=None, content_type="application/json"):
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": content_type})) as answer:
        return answer.read()


def upload(url, path):
    """Return the path on the server."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    (stored,) = json.loads(request(f"{url}gradio_api/upload", body, f"multipart/form-data; boundary={boundary}"))
    return Path(stored)


def call(url, name, *data):
    """Return the last event of a call, and its data."""
    event = json.loads(request(f"{url}gradio_api/call/{name}", json.dumps({"data": data}).encode()))["event_id"]
    *_, kind, content = re.findall("event: (.*)\ndata: (.*)", request(f"{url}gradio_api/call/{name}/{event}").decode())[
        -1
    ]
    return kind, json.loads(content)


def file(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def assert_answers(answer, prediction):
    assert answer["label"] == prediction.labels[0]
    assert [each["label"] for each in answer["confidences"]] == list(prediction.labels)
    assert [each["confidence"] for each in answer["confidences"]] == pytest.approx(prediction.scores, abs=1e-6)


@needs_gradio
@needs_browser
@pytest.mark.slow
def test_page_shows_the_prediction_of_an_uploaded_video_and_requests_nothing_from_other_servers(
    server, classifier, videos, tmp_path
):
    from playwright.sync_api import expect, sync_playwright

    prediction = classifier.predict(videos[7])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        requests = []
        page.on("request", lambda each: requests.append(each.url))
        page.goto(server)
        page.locator("input[type=file]").first.set_input_files(videos[7])
        page.locator("video").wait_for()
        page.get_by_role("button", name="Classify").click()
        expect(page.get_by_test_id("label-output-value")).to_have_text(prediction.labels[0])
        shown = page.locator("[data-testid$=-confidence-set]")
        assert shown.count() == 5
        for row, label, score in zip(shown.all(), prediction.labels, prediction.scores, strict=True):
            assert row.inner_text().split() == [label, f"{score:.0%}"]
        for tab, name in (("Sampling points", "strip"), ("Density", "density"), ("Timeline", "timeline")):
            page.get_by_role("tab", name=tab).click()
            picture = page.locator(f"img[src*='/{name}.png']")
            picture.wait_for()
            assert picture.evaluate("img => img.decode().then(() => img.naturalWidth)") > 500
        assert len(requests) > 10
        assert [each for each in requests if not each.startswith((server, "data:", "blob:"))] == []
        with unreached_server() as address:
            options = "{mode: 'no-cors', signal: AbortSignal.timeout(3000)}"
            fetched = page.evaluate(f"fetch('{address}', {options}).catch(error => `${{error}}`)")
            assert fetched == "TypeError: Failed to fetch"
        page.get_by_label("Clear").click()
        expect(picture).to_have_count(0)
        page.locator("input[type=file]").first.set_input_files(bad_file("text", tmp_path))
        page.locator("video").wait_for(state="attached")
        page.get_by_role("button", name="Classify").click()
        expect(page.get_by_test_id("toast-body").filter(has_text=MESSAGES["text"])).to_be_visible()
        browser.close()


@needs_gradio
def test_api_gives_the_scores_of_predict(server, classifier, videos):
    stored = upload(server, videos[0])
    for views in ("1x1", "4x3"):
        kind, (answer,) = call(server, "predict", file(stored), views)
        assert kind == "complete"
        assert_answers(answer, classifier.predict(videos[0], views=views))
    kind, pictures = call(server, "sampling", file(stored))
    assert kind == "complete"
    kind, (plot, _) = call(server, "timeline", file(stored))
    assert kind == "complete"
    for picture in (*pictures, plot):
        assert request(picture["url"]).startswith(b"\x89PNG")


@needs_gradio
def test_timeline_has_the_segments_of_the_classifier(server, classifier, videos, tmp_path):
    frames = np.concatenate([read_frames(path, range(16)) for path in videos[::8]])
    write_video(tmp_path / "several.mp4", frames, fps=10)
    segments = classifier.timeline(tmp_path / "several.mp4")
    assert segments
    _, (_, table) = call(server, "timeline", file(upload(server, tmp_path / "several.mp4")))
    assert table["headers"] == ["start in s", "end in s", "class", "score"]
    assert table["data"] == [[each.start_s, each.end_s, each.label, round(each.score, 4)] for each in segments]


@needs_gradio
def test_two_users_at_once_get_their_own_answers(server, classifier, videos, monkeypatch):
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    from gradio_client import Client, handle_file

    chosen = videos[0], videos[-1]
    jobs = [
        Client(server, verbose=False, analytics_enabled=False).submit(handle_file(path), "1x1", api_name="/predict")
        for path in chosen
        for _ in range(3)
    ]
    answers = [job.result(timeout=60) for job in jobs]
    for index, answer in enumerate(answers):
        assert_answers(answer, classifier.predict(chosen[index // 3], views="1x1"))
    assert answers[0] != answers[3]


@needs_gradio
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_commands_of_the_docs_give_the_answer(server, classifier, videos, tmp_path):
    shutil.copy(videos[0], tmp_path / "my_video.mp4")
    prediction = classifier.predict(videos[0], views="4x3")
    (shell,) = re.findall("```sh\n(.*?)```", PAGE, re.DOTALL)
    (python,) = re.findall("```py\n(.*?)```", PAGE, re.DOTALL)
    for command, code in (("bash", shell), (sys.executable, python)):
        assert "http://127.0.0.1:7860/" in code
        code = code.replace("http://127.0.0.1:7860/", server)
        options = {"cwd": tmp_path, "env": os.environ | QUIET, "text": True, "stdout": subprocess.PIPE}
        output = subprocess.run([command, "-c", code], **options, check=True).stdout
        if command == "bash":
            assert output.startswith("event: complete\ndata: ")
            (answer,) = json.loads(output.partition("data: ")[2])
            assert_answers(answer, prediction)
        else:
            rows = [line.rpartition(" ") for line in output.splitlines()[-5:]]
            assert [label for label, _, _ in rows] == list(prediction.labels)
            assert [float(score) for _, _, score in rows] == pytest.approx(prediction.scores, abs=1e-6)


@needs_gradio
@pytest.mark.parametrize("kind", MESSAGES)
def test_bad_files_are_refused_with_one_line(server, tmp_path, kind):
    stored = upload(server, bad_file(kind, tmp_path))
    for name, *more in (("predict", "1x1"), ("sampling",)):
        kind, answer = call(server, name, file(stored), *more)
        assert (kind, answer["error"]) == ("error", MESSAGES[stored.stem])


@needs_gradio
def test_too_large_uploads_are_refused_and_not_kept(server, videos, tmp_path):
    folder = upload(server, videos[0]).parents[1]
    before = {path for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(urllib.error.HTTPError) as error:
        upload(server, bad_file("large", tmp_path))
    assert error.value.code == 413
    assert error.value.read() == b"File size exceeded maximum allowed size of 524288 bytes."
    assert {path for path in folder.rglob("*") if path.is_file()} == before


@needs_gradio
def test_requests_without_a_file_are_refused(server, videos):
    stored = upload(server, videos[0])
    kind, answer = call(server, "predict", None, "1x1")
    assert (kind, answer["error"]) == ("error", "no video; upload or record one first")
    stored.unlink()
    kind, answer = call(server, "predict", file(stored), "1x1")
    assert (kind, answer["error"]) == ("error", f"{stored.name}: has been deleted; upload it again")
    kind, answer = call(server, "predict", file(upload(server, videos[0])), "1000x1")
    assert kind == "error" and "1000x1" in answer["error"]


@needs_gradio
def test_api_reads_no_files_of_the_server_and_no_addresses(server, checkpoint, videos):
    for path in (videos[0], checkpoint, "/etc/passwd"):
        assert call(server, "predict", file(path), "1x1")[0] == "error"
        assert call(server, "predict", {"path": str(path)}, "1x1")[0] == "error"
        with pytest.raises(urllib.error.HTTPError) as error:
            request(f"{server}gradio_api/file={path}")
        assert error.value.code == 403
    with unreached_server() as address:
        kind, answer = call(server, "predict", file(address), "1x1")
        assert (kind, answer["error"]) == ("error", f"{address}: is an address; upload the file")


@needs_gradio
@pytest.mark.slow
def test_uploads_are_deleted_after_their_time_and_at_the_end(trained, videos):
    with serving(trained, "--keep=6") as (process, url):
        stored = upload(url, videos[0])
        folder = stored.parents[1]
        assert stored.exists()
        assert call(url, "sampling", file(stored))[0] == "complete"
        assert [*folder.rglob("*.png")]
        deadline = time.monotonic() + 12
        while any(path.is_file() for path in folder.rglob("*")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        upload(url, videos[0])
        assert_ends(process, url, folder, signal.SIGINT)


@needs_gradio
@pytest.mark.slow
def test_page_of_an_image_network_takes_images(digits, tmp_path):
    out = tmp_path / "image"
    assert main(["train", *IMAGE, f"--data.root={digits}", f"--out={out}"]) == OK
    classifier = sparsevideo.load(out, device="cpu")
    image = min((digits / "images" / "test").glob("*/*.jpg"))
    (tmp_path / "text.jpg").write_text("not an image")
    with serving(out) as (process, url):
        stored = upload(url, image)
        kind, (answer,) = call(url, "predict", file(stored), "1x3")
        assert kind == "complete"
        assert_answers(answer, classifier.predict(image, views="1x3"))
        assert call(url, "sampling", file(stored))[0] == "complete"
        kind, answer = call(url, "predict", file(upload(url, tmp_path / "text.jpg")), "1x1")
        assert kind == "error" and re.fullmatch(r"text\.jpg: .*", answer["error"])
        assert_ends(process, url, stored.parents[1], signal.SIGTERM)


def assert_ends(process, url, folder, stop):
    process.send_signal(stop)
    assert process.wait(timeout=20) == OK
    assert not folder.exists()
    with pytest.raises(urllib.error.URLError):
        request(url)
    with socket.create_server(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))):
        pass


def error_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_serve_without_the_extra_names_it(trained, monkeypatch, capsys):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "no_proxy"):
        monkeypatch.setenv(name, "")  # restored at the end
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", str(trained)]) == FAILED
    assert error_line(capsys).endswith("the page needs the extra [web]: pip install '.[web]'")


@pytest.mark.parametrize("option", ["--port=70000", "--max-size=0", "--max-duration=0", "--keep=-1"])
def test_serve_refuses_impossible_options(option, capsys):
    assert main(["serve", "a.pt", option]) == USAGE
    assert option.partition("=")[0] in error_line(capsys)


@needs_gradio
def test_serve_names_the_port_in_use_and_the_unusable_checkpoint(tmp_path, monkeypatch, capsys):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "no_proxy"):
        monkeypatch.setenv(name, "")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "a.pt", f"--port={port}"]) == FAILED
        assert error_line(capsys) == (
            f"error: 127.0.0.1:{port}: Address already in use; choose another --port or --host"
        )
    assert main(["serve", "a.pt", "--host=203.0.113.1"]) == FAILED
    assert error_line(capsys).endswith("Cannot assign requested address; choose another --port or --host")
    assert main(["serve", str(tmp_path / "a.pt"), "--port=0"]) == FAILED
    assert error_line(capsys).endswith("a.pt: no such checkpoint")
    model = sparsevideo.create_model("video_sparseformer_nano", **NANO, num_heads=4, num_classes=3)
    sparsevideo.save_weights(tmp_path / "bare.safetensors", model)
    assert main(["serve", str(tmp_path / "bare.safetensors"), "--port=0"]) == FAILED
    assert "bare.safetensors: holds no class names" in error_line(capsys)
