"""Files of pretrained weights: finding, downloading, and copying them into a network."""

import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.request import Request, urlopen

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rarebox.core.files import PART
from rarebox.core.progress import Progress, silent
from rarebox.data.classes import Classes
from rarebox.errors import UserError

Tensors = dict[str, Tensor]
"""Weights by name."""

TIMEOUT = 10.0
"""Seconds until a server that does not answer counts as unreachable."""

OFFLINE = "RAREBOX_OFFLINE"
"""Environment variable: if it is set and not empty, nothing is downloaded and no server is contacted."""

EPSILON = 1e-5
"""The epsilon of the networks' frozen batch norms."""


class WeightsUnavailable(UserError):
    """Pretrained weights are not on this machine and cannot be downloaded."""


@dataclass(frozen=True)
class Source:
    """Weights that a network may start from.

    ``url`` is empty for a file that is part of the installation, which ``packaged`` returns. ``name`` is the file's
    name in torch's cache, by default the URL's. ``rows`` names the rows of the class layers (a whole detector's,
    background included); it is empty for a backbone's weights. ``read`` renames what the file holds. ``epsilon`` is
    that of the file's batch norms. ``instead`` are the options that need no download.
    """

    url: str = ""
    name: str = ""
    packaged: Callable[[], Path] | None = None
    rows: tuple[str, ...] = ()
    read: Callable[[Tensors], Tensors] = lambda saved: saved
    epsilon: float = EPSILON
    instead: str = "--backbone efficientnet_lite0 --weights imagenet, which are part of the installation"

    @property
    def place(self) -> Path:
        """The path of the file, present or not: in torch's cache, or in the installation."""
        return self.packaged() if self.packaged else cached(self.name or self.url)

    @property
    def digest(self) -> str:
        """The first digits of the file's SHA-256, which torch puts into its name; may be empty."""
        found = re.search(r"-([0-9a-f]{8,})\.", self.url)
        return found[1] if found else ""

    def is_named(self, weights: str) -> bool:
        """Whether a path has the name of this file."""
        return bool(self.url) and Path(weights).name == self.place.name

    def is_here(self) -> bool:
        """Whether the file is on this machine."""
        return self.place.is_file()

    def fetch(self, progress: Progress = silent) -> Path:
        """The file, downloaded into torch's cache if it is missing. Raises WeightsUnavailable if that fails."""
        if not self.is_here():
            try:
                _download(self.url, self.place, self.digest, progress)
            except (OSError, HTTPException) as error:
                raise WeightsUnavailable(
                    f"the weights {self.place.name} are not on this machine ({error}). Download {self.url} elsewhere "
                    f"and put the file at {self.place}, or name it with --weights FILE, or use {self.instead}"
                ) from error
        return self.place

    def load(self, file: Path | None = None) -> Tensors:
        """The weights, renamed as in our networks. Raises UserError for a file that holds others."""
        file = file or self.fetch()
        try:
            saved = self.read(read_weights(file))
        except RuntimeError as error:
            advice = f"Delete it and try again, or put {self.url} there" if self.url else "Choose another"
            raise UserError(
                f"the weights file {file} is damaged or holds another network: {' '.join(str(error).split())[:200]}. "
                f"{advice}"
            ) from error
        if self.epsilon == EPSILON:
            return saved
        return {n: t + (self.epsilon - EPSILON) if n.endswith("running_var") else t for n, t in saved.items()}


def cached(url: str) -> Path:
    """The file in torch's cache for weights from a URL, or of that name."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def read_weights(file: Path) -> Tensors:
    """The tensors of a ``.safetensors`` or ``.pth`` file. Raises UserError if it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many types, which mean the same to the user
        raise UserError(f"the weights file {file} cannot be read: {error}") from error


def checksum(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------- download


def answers(url: str) -> bool:
    """Whether a server offers the file at a URL, asked for at most ``TIMEOUT`` seconds."""
    try:
        _open(url, "HEAD").close()
    except (OSError, HTTPException):
        return False
    return True


def _open(url: str, method: str = "GET") -> HTTPResponse:
    """The server's answer. Raises ``OSError``, also if there is none after ``TIMEOUT`` seconds. A socket's own timeout
    is not enough: it applies to each of a host's addresses separately, and not to name resolution.
    """
    if os.environ.get(OFFLINE):
        raise ConnectionError(f"{OFFLINE} is set")
    answer: Queue[HTTPResponse | Exception] = Queue()

    def ask() -> None:
        try:
            answer.put(urlopen(Request(url, method=method, headers={"User-Agent": "rarebox"}), timeout=TIMEOUT))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=TIMEOUT)
    except Empty:
        raise TimeoutError(f"no answer in {TIMEOUT:.0f} seconds") from None
    if isinstance(found, Exception):
        raise found
    return found


def _download(url: str, file: Path, digest: str, progress: Progress) -> None:
    """Download a file whole or not at all, and check that its SHA-256 begins with ``digest``."""
    with _open(url) as response:
        total, done, found = int(response.headers.get("Content-Length") or 0), 0, sha256()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}{PART}")  # several processes may start at a time
        try:
            with part.open("wb") as out:
                while block := response.read(1 << 18):
                    out.write(block)
                    found.update(block)
                    done += len(block)
                    progress("weights", done >> 20, max(total, done) >> 20, f"MB of {file.name}")
                out.flush()
                os.fsync(out.fileno())
            if done < total:
                raise ConnectionError("the connection was closed too early")
            if not found.hexdigest().startswith(digest):
                raise ConnectionError(f"the server sent a different file, SHA-256 {found.hexdigest()}")
            part.replace(file)
        finally:
            with suppress(OSError):
                part.unlink()


# ------------------------------------------------------------------------------------------- copying weights


def take_over(network: nn.Module, saved: Tensors, theirs: Sequence[str] = (), ours: Sequence[str] = ()) -> None:
    """Copy into a network every saved tensor that fits by name and shape, and the rows of classes of the same name.

    The networks name their parts as torchvision does, so a whole detector fits by name; the tensors of a bare backbone
    go under ``backbone.body``. ``theirs`` and ``ours`` name the rows of the class layers (``network.class_layers``);
    rows of other classes are unchanged, and so are all rows if either is unknown and the numbers of classes differ.
    Raises UserError unless the whole backbone fits.
    """
    own = network.state_dict()
    fitting = {
        place: tensor
        for name, tensor in saved.items()
        for place in (name, f"backbone.body.{name}")
        if place in own and own[place].shape == tensor.shape
    }
    layers: dict[str, tuple[int, int]] = getattr(network, "class_layers", {})
    if theirs and ours:
        same = same_classes(ours, theirs)
        for name in [name for name in own if name.rsplit(".", 1)[0] in layers and name in saved]:
            groups, each = layers[name.rsplit(".", 1)[0]]
            if len(saved[name]) < groups * len(theirs) * each:
                raise UserError(f"these weights have {len(saved[name])} rows of {name}, fewer than their classes need")
            fitting[name] = own[name].clone(memory_format=torch.contiguous_format)
            rows, known = (rows.reshape(groups, len(rows) // groups, -1) for rows in (fitting[name], saved[name]))
            for here, there in same:
                rows[:, here * each : here * each + each] = known[:, there * each : there * each + each]
    body = [name for name in own if name.startswith("backbone.body.")] or list(own)
    missing = [name for name in body if name not in fitting]
    if missing:
        raise UserError(
            f"these weights do not fit the backbone: {len(missing)} of its {len(body)} tensors are missing or have "
            f"another shape, such as {missing[0]}"
        )
    network.load_state_dict({**own, **fitting})


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """The indices of the names that both have: ours, theirs. Case and spaces are ignored; ``N/A`` is not a name."""
    known = Classes(theirs)
    found = [(place, known.find(name)) for place, name in enumerate(ours) if name != "N/A"]
    return [(here, there) for here, there in found if there is not None]


def through(stock: Callable[..., nn.Module]) -> Callable[[Tensors], Tensors]:
    """A function that reads a file of torchvision's: its networks rename the tensors of older files."""

    def read(saved: Tensors) -> Tensors:
        given: dict[str, Any] = {"weights": None, "weights_backbone": None}
        with torch.device("meta"):  # no memory, no random numbers
            network = stock(**given)
        network.load_state_dict(saved, assign=True)
        return network.state_dict()

    return read
