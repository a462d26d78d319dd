"""Measure the response time of a served model: without a server, with one client, and with several clients at a time.

python scripts/bench/serve.py model photos                        1 and 8 clients, 10 seconds each
python scripts/bench/serve.py model photos --clients 1 4 16 --seconds 30

MODEL is a folder that `imgcls-search export --bundle` wrote, PHOTOS a folder of images, whose files are sent unchanged,
one per request. `alone` decodes and classifies the same images one by one in this process, without HTTP, before and
after the other measurements. A client sends its next request when it has received its answer. Times are measured by the
clients, from the request to the complete answer. The server is the command itself, in a separate process on the same
machine. Writes serve.json.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import frame
from imgcls_search.data.tally import Tally, image_files
from imgcls_search.deploy.bundle import Bundle, read
from imgcls_search.deploy.predict import classify

MOST_IMAGES = 500


def main() -> None:
    """Measure, print and write the results."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("model", type=Path, help="a bundle")
    parser.add_argument("photos", type=Path, help="a folder of images")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="at a time; default: 1 8")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement; default: 10")
    arguments = parser.parse_args()
    files = sorted(image_files(arguments.photos, Tally(arguments.photos)))[:MOST_IMAGES]
    with frame.results("serve", arguments.out) as results:
        bundle = read(arguments.model)
        before = alone(bundle, files, arguments.seconds)
        results["served"] = served(arguments.model, files, arguments.clients, arguments.seconds)
        results["alone"] = [before, alone(bundle, files, arguments.seconds)]
        for entry in results["served"]:
            middle = f"{entry['ms']['lower_quartile']:.1f} to {entry['ms']['upper_quartile']:.1f}"
            print(
                f"{entry['clients']} client(s): {entry['ms']['median']:.1f} ms an answer ({middle}), "
                f"{entry['a_second']:.0f} images a second"
            )
        print(f"without HTTP: {', '.join(format(entry['median'], '.1f') for entry in results['alone'])} ms an image")


def alone(bundle: Bundle, files: list[Path], seconds: float) -> dict[str, float]:
    """Return the time of single images in this process, ms."""
    found, ending = [], time.perf_counter() + seconds
    while time.perf_counter() < ending:
        began = time.perf_counter()
        list(classify(bundle, [files[len(found) % len(files)]], top=1))
        found.append(1000 * (time.perf_counter() - began))
    return frame.spread(found)


def served(model: Path, files: list[Path], clients: list[int], seconds: float) -> list[dict[str, Any]]:
    """Start a server and return the times for several numbers of clients."""
    images = [file.read_bytes() for file in files]
    command = [sys.executable, "-m", "imgcls_search", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            address = urlsplit(line.split(" on ")[-1].split()[0]).netloc
            _ask(address, images[:1], 0.0)
            return [_measure(address, images, count, seconds) for count in clients]
        finally:
            process.terminate()


def _measure(address: str, images: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(lambda number: _ask(address, images[number:] + images[:number], seconds), range(clients)))
    took = time.perf_counter() - began
    found = [value for part in parts for value in part]
    return {
        "clients": clients,
        "ms": frame.spread(found),
        "answers": len(found),
        "a_second": round(len(found) / took, 1),
    }


def _ask(address: str, images: list[bytes], seconds: float) -> list[float]:
    """Return the times of one client's requests, at least one, ms."""
    connection = http.client.HTTPConnection(address, timeout=60)
    found: list[float] = []
    ending = time.perf_counter() + seconds
    while not found or time.perf_counter() < ending:
        began = time.perf_counter()
        connection.request("POST", "/predict?top=1", images[len(found) % len(images)])
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {content.decode()}")
        found.append(1000 * (time.perf_counter() - began))
    connection.close()
    return found


if __name__ == "__main__":
    main()
