"""The gateway's certificate: read again while it serves, for the connections that come after.

New files get a TLS context of their own. One context that took up another certificate would keep what it had for another
kind of key, and would be left without any key by a pair of files of which only one has been replaced yet.
"""

from __future__ import annotations

import logging
import os
import ssl

from cwd.errors import Code, CwdError

LOG = logging.getLogger("cwd.gateway")


class Certificate:
    """A chain and its key, as PEM files. `context` is what a server listens with, from beginning to end."""

    def __init__(self, chain: str, key: str) -> None:
        """Raises `CwdError` if the files are no certificate with its key."""
        self._chain, self._key = chain, key
        self._stamp = self._look()
        try:
            self.context = self._current = self._read()
        except (OSError, ssl.SSLError) as error:
            raise CwdError(f"{chain}, {key}: no certificate with its key: {_reason(error)}",
                           code=Code.BAD_ARGUMENT) from None
        # called at every handshake, whether or not the client says whom it wants
        self.context.sni_callback = self._choose  # type: ignore[assignment]

    def refresh(self, always: bool = False) -> None:
        """Read the files again if they have changed, or `always`. What is no certificate changes nothing."""
        stamp = self._look()
        if stamp == self._stamp and not always:
            return
        self._stamp = stamp
        try:
            self._current = self._read()
            LOG.info("%s: read again", self._chain)
        except (OSError, ssl.SSLError) as error:
            LOG.warning("%s, %s: %s; the certificate read before still holds", self._chain, self._key, _reason(error))

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._chain, self._key, password=_passphrase)
        return context

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for path in (self._chain, self._key):
            try:
                stat = os.stat(path)
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except OSError:
                found.append((0, 0, 0))
        return found


def _passphrase() -> str:
    """In the place of OpenSSL's own question, which waits for a terminal's answer while nobody is served."""
    raise OSError("the key has a passphrase, and nobody to ask for it")


def _reason(error: OSError) -> str:
    return str(error) if isinstance(error, ssl.SSLError) else error.strerror or str(error)
