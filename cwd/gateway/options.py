"""What `cwd gateway` can be told: one plain record, checked here, so that every later module may trust it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cwd.config import endpoints
from cwd.errors import Code, CwdError
from cwd.gateway.shards import parse_shards
from cwd.selection.feedback_log import PART_BYTES
from cwd.settings import check_log_level
from cwd.units import NS_PER_MS, NS_PER_S


@dataclass(frozen=True)
class GatewayOptions:
    """See the comments; sizes in bytes, times in nanoseconds."""

    #: address to listen on; one that others can reach needs tokens, or --insecure
    host: str = "127.0.0.1"
    #: 0 for any free one
    port: int = 8000
    #: the controller's socket for clients; with its standbys' after it, separated by commas
    endpoint: str = "ipc:///run/cwd/clients.sock"
    #: its socket for admins, or several as above: for load and unload, and for the workers on the status page; none
    #: refuses those
    admin_endpoint: str = ""
    #: several controllers instead of that one: "PATTERN=ENDPOINT", or "PATTERN=ENDPOINT=ADMIN_ENDPOINT", separated by
    #: spaces; a model is at the first whose pattern its name matches
    shards: str = ""
    #: SLO of requests without a `timeout`
    slo_ns: int = 100 * NS_PER_MS
    #: file of bearer tokens, one per line; who changes it need not restart the gateway
    token_file: str = ""
    #: certificate chain and private key, as PEM files
    tls_cert: str = ""
    tls_key: str = ""
    #: origins, separated by commas, whose pages may ask ("*" for all); other pages are refused
    cors: str = ""
    #: listen on any address without tokens
    insecure: bool = False
    #: largest body of a request, before and after decompression
    body_max_bytes: int = 64 << 20
    #: the file of applications; "" for $CWD_APPS, or where `cwd app` keeps them; "none" serves models alone
    apps: str = ""
    #: for answers of models that applications keep; 0 keeps none
    cache_bytes: int = 64 << 20
    #: compare whole inputs where their 128-bit hashes are equal, and keep them for it
    cache_compare: bool = True
    #: where policies' states are: "" for a file beside the applications, else redis://HOST
    states: str = ""
    #: a feedback log goes on in a new file when one is this long
    feedback_part_bytes: int = PART_BYTES
    #: what all files of feedback may take, but for those that are written to: the oldest are deleted, and the states of
    #: policies can then no longer be rebuilt from all that made them. 0 keeps all
    feedback_keep_bytes: int = 0
    #: a port for Clipper's own REST calls, to query and to administer; 0 for any free one, -1 for none
    clipper_port: int = -1
    #: how many applications, the hottest, have metrics of their own; all others are counted together
    metrics_apps: int = 50
    #: connections at once; what comes beyond is answered 503
    connections: int = 2048
    #: after SIGTERM it says that it is not ready, and for so long goes on serving
    drain_ns: int = NS_PER_S
    #: "debug", "info", "warning" or "error"
    log_level: str = "info"

    def __post_init__(self) -> None:
        endpoints(self.endpoint)
        if self.admin_endpoint:
            endpoints(self.admin_endpoint)
        check_log_level(self.log_level)
        parse_shards(self.shards)
        if not 0 <= self.port <= 65535:
            raise _fault(f"port {self.port}: 0 to 65535 are possible")
        if not -1 <= self.clipper_port <= 65535:
            raise _fault(f"clipper_port {self.clipper_port}: 0 to 65535 are possible, -1 for none")
        if self.clipper_port >= 0 and self.apps == "none":
            raise _fault("Clipper's calls are about applications, and --apps none serves none")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise _fault("TLS needs both --tls-cert and --tls-key")
        for name, low in (("slo_ns", 1), ("body_max_bytes", 1), ("connections", 1), ("drain_ns", 0), ("cache_bytes", 0),
                          ("metrics_apps", 0), ("feedback_part_bytes", 1), ("feedback_keep_bytes", 0)):
            if getattr(self, name) < low:
                raise _fault(f"{name} is {getattr(self, name)}, wanted at least {low}")
        if not (self.is_local or self.token_file or self.insecure):
            raise _fault(f"listening on {self.host} lets others in: give --token-file FILE, or --insecure")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)

    @property
    def origins(self) -> tuple[str, ...]:
        return tuple(origin.strip() for origin in self.cors.split(",") if origin.strip())


#: what SIGHUP may change. The files of tokens and of the certificate may change at any time, but not where they are
RELOADABLE = frozenset(("slo_ns", "body_max_bytes", "connections", "drain_ns", "log_level"))


def is_loopback(host: str) -> bool:
    """Whether a host's name, or its address, is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _fault(text: str) -> CwdError:
    return CwdError(text, code=Code.BAD_ARGUMENT)
