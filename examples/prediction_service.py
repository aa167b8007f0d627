# %% [markdown]
# # A prediction service for single images
#
# The service holds the smoothed classifier and answers each request with a class and a certified radius, or
# abstains. The noise of each request is fresh and drawn from the entropy of the operating system: who could foresee
# it could aim at the votes. docs/deployment.md says what such an answer guarantees and what it costs.

# %%
import io
import json
import logging
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from deqcert.checkpoints import load_network
from deqcert.data import read_image
from deqcert.errors import DataError
from deqcert.smoothing import Smoothing, Standard, Stream
from deqcert.statistics import ABSTAIN, CertificationRule

CHECKPOINT = "deqcert:digits_mdeq_tiny"
LARGEST_FILE = 2**20  # bytes
log = logging.getLogger("prediction_service")


def png(pixels: np.ndarray) -> bytes:
    """Return the PNG file of gray pixels, uint8 (H, W)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# %% [markdown]
# ## The service
#
# Checking the classifier and preparing it for images of one shape takes about as long as a prediction, so it is done
# once, with a black image. Requests are classified one after the other, because each uses all cores.


# %%
class Service:
    """Certifies one image per request.

    Args:
        checkpoint: Checkpoint that states its network.
        n: Noisy samples per request; more of them certify larger radii and abstain less.
        alpha: Probability with which an answer may be wrong.
    """

    def __init__(self, checkpoint: str = CHECKPOINT, n: int = 200, alpha: float = 0.001) -> None:
        loaded = load_network(checkpoint)
        assert loaded.sigma is not None, "the checkpoint does not state the noise that it was trained with"
        network: Any = loaded.network
        self.channels, self.size = network.image_channels, network.image_size
        self.g = Smoothing(loaded.sigma).of(network)
        self.sampling, self.rule = Standard(n0=32, n=n), CertificationRule(alpha)
        self.engine = self.sampling.engine(self.g, self.read(png(np.zeros((self.size, self.size), np.uint8))))
        self._free = threading.Lock()

    def read(self, content: bytes) -> Tensor:
        """Decode an image file, which may be damaged or hostile."""
        return read_image(content, "request", self.channels, self.size)

    def answer(self, content: bytes) -> dict[str, object]:
        """Return class (None: abstain) and radius for the content of an image file; raises DataError for a bad one."""
        image, stream = self.read(content), Stream.fresh()
        with self._free:
            (votes,) = self.sampling.group_votes(self.g, self.engine, image[None], [stream])
        certificate = self.rule.certify(votes)
        log.info("%s %s %.3f s", stream, votes.estimation, votes.seconds)  # enough to take the same votes again
        prediction = None if certificate.prediction == ABSTAIN else certificate.prediction
        return {"class": prediction, "radius": round(certificate.radius, 4), "alpha": self.rule.alpha}


service = Service()
zero = png((load_digits().images[0] * 255 / 16).astype(np.uint8))
print(service.answer(zero))

# %% [markdown]
# ## Over HTTP
#
# The server of the standard library shows the protocol: `POST` an image file, receive JSON. It has neither
# encryption nor authentication: in production, call `Service.answer` from the framework that you trust.


# %%
class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        try:
            if not 0 < length <= LARGEST_FILE:
                raise DataError(f"request: {length} bytes; must have 1 to {LARGEST_FILE}")
            code, reply = 200, service.answer(self.rfile.read(length))
        except DataError as error:
            log.warning("%s", error)  # what decoders say is not for strangers
            code, reply = 400, {"error": f"must be an image of {service.size} x {service.size} pixels"}
        body = json.dumps(reply).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        log.info(format, *args)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # port 0: any free one
threading.Thread(target=server.serve_forever, daemon=True).start()

# %% [markdown]
# A client, with images of one digit each and with a file that is not an image:


# %%
def ask(content: bytes) -> tuple[int, dict[str, object]]:
    """Return the status and the JSON that the server answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}", data=content, method="POST")
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


replies = [ask(png((image * 255 / 16).astype(np.uint8))) for image in load_digits().images[:4]]
replies.append(ask(b"not an image"))
for status, reply in replies:
    print(status, reply)
server.shutdown()
server.server_close()
