"""Who may use the server: one-time links, signed cookies, and checks of Host and Origin."""

import base64
import hmac
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

from rarebox.core.files import real, write_bytes, write_text
from rarebox.errors import UserError
from rarebox.labels.leases import clean_name

LARGEST_BODY = 1 << 20
"""The most bytes of a request's body."""

MOST_FORMER = 10
"""Former names that a cookie keeps, besides the first."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every response."""

_HOST = re.compile(r"(?P<name>[\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Visitor:
    """A user of the server. ``fixed``: the link was made for this name. ``former``: earlier names, oldest first."""

    name: str | None = None
    fixed: bool = False
    former: tuple[str, ...] = ()

    def renamed(self, name: str) -> "Visitor":
        """The same visitor under a new name."""
        known = self.names
        first, *later = known or [name]
        return replace(self, name=name, former=(first, *later[-MOST_FORMER:]) if known else ())

    @property
    def names(self) -> list[str]:
        """All names of the visitor. Answers under any of them are their own."""
        return list(dict.fromkeys([*self.former, *([self.name] if self.name else [])]))

    def holder(self, tab: str) -> str:
        """The holder of leases: one tab of this visitor. It stays the same when the visitor takes another name.

        Names contain no line break, so no two pairs of name and tab yield the same holder.
        """
        return f"{self.former[0] if self.former else self.name}\n{tab}"


class Authenticator:
    """Admits visitors by link and recognises them by cookie, also after a restart of the server."""

    def __init__(self, secret: bytes, project: str | None = None) -> None:
        """``project`` is the name of the project, which outlives the secret (see :func:`read_name`)."""
        self._secret = secret
        self._links: dict[str, Visitor] = {}
        self.cookie = _cookie_name(secret)
        self.project = project or self.cookie

    def one_time_link(self, visitor: Visitor) -> str:
        """A token that admits one browser, once."""
        token = secrets.token_urlsafe(24)
        self._links[_fingerprint(token)] = visitor
        return token

    def personal_link(self, name: str) -> str:
        """A token for one person, valid on all devices until the secret of the project changes."""
        name = clean_name(name, "person")
        return f"{base64.urlsafe_b64encode(name.encode()).decode()}.{self._sign('person:' + name)}"

    def enter(self, token: str) -> Visitor | None:
        """The visitor with this token; None if it is wrong or already used."""
        if visitor := self._links.pop(_fingerprint(token), None):
            return visitor
        try:
            name = base64.urlsafe_b64decode(token.partition(".")[0]).decode()
            good = hmac.compare_digest(token.encode(), self.personal_link(name).encode())
        except (ValueError, UserError):
            return None
        return Visitor(name, fixed=True) if good else None

    @property
    def key(self) -> str:
        """The key by which another program (Label Studio) is admitted, as part of the address."""
        return self._sign("program")[:32]

    def cookie_of(self, visitor: Visitor) -> str:
        """The signed value of a visitor's cookie."""
        text = base64.urlsafe_b64encode(json.dumps(asdict(visitor)).encode()).decode()
        return f"{text}.{self._sign('cookie:' + text)}"

    def recognise(self, cookie: str | None) -> Visitor | None:
        """The visitor with this cookie; None if its signature is not ours."""
        text, _, signature = (cookie or "").partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("cookie:" + text).encode()):
            return None
        known = json.loads(base64.urlsafe_b64decode(text))
        return Visitor(known["name"], known["fixed"], tuple(known.get("former", ())))

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), sha256).hexdigest()


def _fingerprint(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def read_secret(file: Path) -> bytes:
    """The project's secret, created on first use and readable by its owner only. If it is lost, everybody must sign in
    again."""
    secret = file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""
    if len(secret) != 64:
        secret = secrets.token_hex(32)
        write_bytes(file, secret.encode(), mode=0o600)
    return secret.encode()


def _cookie_name(secret: bytes) -> str:
    return f"rarebox-{sha256(secret).hexdigest()[:8]}"


def read_name(file: Path, secret: Path, session: str) -> str:
    """The name by which open pages know the project, created on first use. They keep unsaved answers under it.

    It is made from the first ``session`` of the store, so a project restored from a backup of its store gets it
    again. Projects that have a secret and no name used the name of the cookie. The file also names its folder: a copy
    of a project gets another name, so that it does not take the answers of pages that were opened on the original.
    """
    name, folder = _name_and_folder(file)
    if not name:
        name = _cookie_name(read_secret(secret)) if secret.exists() or not session else f"rarebox-{session[:8]}"
    elif _is_copy(file, name, folder):
        name = f"rarebox-{secrets.token_hex(4)}"
    here = str(real(file.parent))
    if not re.search("[\r\n]", here) and (name, here) != _name_and_folder(file):
        write_text(file, f"{name}\n{here}\n")
    return name


def _name_and_folder(file: Path) -> tuple[str, str]:
    """The first two lines of a file with a project's name; empty strings where it has none."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    name, folder = [*text.splitlines(), "", ""][:2]
    return (name, folder) if re.fullmatch("[!-~]{1,64}", name) else ("", "")


def _is_copy(file: Path, name: str, folder: str) -> bool:
    """Whether the project that was served from ``folder`` is still there."""
    original = Path(folder) / file.name
    try:
        return bool(folder) and _name_and_folder(original)[0] == name and not original.samefile(file)
    except OSError:  # such as a folder that may not be read
        return False


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def good_host(header: str, listening_on: str, also: Collection[str] = ()) -> bool:
    """Whether a request's Host is a name of this server. A foreign name server may give our address another name."""
    if not (match := _HOST.fullmatch(header)):
        return False
    name = match["name"].strip("[]").lower()
    if name in {"localhost", "127.0.0.1", "::1", *(one.lower() for one in (listening_on, *also))}:
        return True
    if is_loopback(listening_on):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in own_names()
    return True


@cache
def own_names() -> frozenset[str]:
    """The names of this machine. Looked up once, because a name server may be slow."""
    return frozenset({socket.gethostname().lower(), socket.getfqdn().lower()})


def good_origin(origin: str | None, fetch_site: str | None, host: str) -> bool:
    """Whether a request that changes something comes from our own page, or from no page at all."""
    if origin is not None:
        return origin in (f"http://{host}", f"https://{host}")
    return fetch_site in (None, "same-origin", "none")
