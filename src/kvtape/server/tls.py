"""TLS to a server: what is trusted, the handshake, and what its failures mean.

Hides the ssl module, of whose errors each is one clear sentence with the next step
here. The certificate must be signed by a CA that is trusted (the system's, unless a
file is named) and bear the name that is connected to, unless the operator says
otherwise. Nothing turns the first check off: a CA file costs little, and without it
anybody can pose as the server, and is told its password.

The context is built for each connection, so that a certificate which was renewed on
the disk is used from the next link on.

A connection that is cut is the end of the data, with or without TLS's own goodbye
(close_notify), which servers do not say: a link that breaks is asked to go on at its
offset in any case.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import trio

from kvtape.errors import ServerError, UsageError
from kvtape.server.url import Tls

# SSL_R_... and X509_V_ERR_... of OpenSSL: how its reasons begin or what they contain.
_EXPIRED, _NOT_YET_VALID = 10, 9
_UNKNOWN_CA = {2, 18, 19, 20, 21, 27}
_WRONG_NAME = {62, 64}

_NO_TLS = ("WRONG_VERSION", "RECORD_LAYER", "PACKET_LENGTH", "HTTP")
_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")
_REFUSES_CERTIFICATE = ("ALERT_", "CERTIFICATE")
_TOO_OLD = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL")


class DistrustError(ServerError):
    """One of the two does not trust the other, which waiting does not mend."""


class TlsStream(trio.abc.Stream):
    """A connection over TLS that says in words why its server never said one.

    Since TLS 1.3 a server looks at our certificate when the handshake is over for us,
    so that its refusal comes instead of the first answer.
    """

    def __init__(
        self, stream: trio.SSLStream[trio.SocketStream], address: str, tls: Tls
    ) -> None:
        self._stream = stream
        self._address = address
        self._tls = tls
        self._is_agreed = False
        self._has_heard = False

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket beneath."""
        return self._stream.transport_stream.socket

    @property
    def names(self) -> list[str]:
        """The names that the server's certificate bears."""
        certificate: dict[str, tuple[tuple[str, str], ...]]
        certificate = self._stream.getpeercert() or {}
        return [name for _, name in certificate.get("subjectAltName", ())]

    async def do_handshake(self) -> None:
        """Agree with the server; ServerError if it is not to be trusted."""
        try:
            await self._stream.do_handshake()
        except trio.BrokenResourceError as error:
            raise self._explained(error) from error
        self._is_agreed = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what there is; b"" at the end."""
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError as error:
            if self._has_heard:
                raise
            raise self._explained(error) from error
        if not data and not self._has_heard:
            raise ServerError(self._hung_up())
        self._has_heard = True
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            if self._has_heard:
                raise
            raise self._explained(error) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room to send."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    def _explained(self, error: trio.BrokenResourceError) -> ServerError:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _distrusted(cause, self._address, self._tls)
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return DistrustError(_meaning(cause.reason, self._address, self._tls))
        return ServerError(self._hung_up())

    def _hung_up(self) -> str:
        if not self._is_agreed:
            return (
                f"{self._address} closed the connection in the TLS handshake: the port "
                "may speak no TLS"
            )
        # Its reason may be lost: it hangs up while we already speak.
        what = f"may not accept the client certificate {self._tls.cert}"
        if self._tls.cert is None:
            what = "may want a client certificate: give one by --tls-cert and --tls-key"
        return (
            f"{self._address} closed the connection right after the TLS handshake: it "
            f"{what}"
        )


class WrongNameError(DistrustError):
    """The certificate is to be trusted, and is another server's."""


async def encrypt(
    stream: trio.SocketStream,
    context: ssl.SSLContext,
    tls: Tls,
    host: str,
    address: str,
) -> TlsStream:
    """Do the handshake on a connection to a server; ServerError or UsageError."""
    name = tls.server_name or host
    try:
        encrypted = trio.SSLStream(
            stream, context, server_hostname=name, https_compatible=True
        )
        secure = TlsStream(encrypted, address, tls)
        await secure.do_handshake()
    except ValueError as error:
        raise UsageError(f"{name!r} is no server's name: {error}") from None
    return secure


def build_context(tls: Tls) -> ssl.SSLContext:
    """Read the files; UsageError if one cannot be used. Blocks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.checks_name
    if tls.ca is None:
        context.load_default_certs()
    else:
        _load_ca(context, tls.ca)
    if tls.cert is not None:
        _load_cert(context, tls.cert, tls.key)
    elif tls.key is not None:
        raise UsageError(
            f"the key {tls.key} has no certificate: give that by --tls-cert"
        )
    return context


def _load_ca(context: ssl.SSLContext, file: Path) -> None:
    _must_be_readable(file)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        raise UsageError(
            f"{file} (--tls-ca) holds no certificate: it must be a PEM file"
        ) from None


def _load_cert(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    is_encrypted = False

    def no_passphrase() -> str:
        nonlocal is_encrypted
        is_encrypted = True
        return ""

    _must_be_readable(cert)
    _must_be_readable(key or cert)
    where = f"{cert} (--tls-cert)" if key is None else f"{key} (--tls-key)"
    try:
        context.load_cert_chain(cert, key, password=no_passphrase)
    except ssl.SSLError as error:
        if is_encrypted:
            raise UsageError(
                f"the key in {where} is encrypted: give one that is not, such as "
                "openssl pkey -in KEY -out PLAIN makes, readable to kvtape only"
            ) from None
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"the key in {where} does not belong to the certificate {cert}"
            ) from None
        raise UsageError(
            f"there is no certificate in {cert} (--tls-cert), or no key in {where}: "
            "both must be PEM files"
        ) from None


def _must_be_readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None


def _distrusted(
    error: ssl.SSLCertVerificationError, address: str, tls: Tls
) -> DistrustError:
    code = error.verify_code
    if code in _WRONG_NAME:
        return WrongNameError(f"the certificate of {address} is of another name")
    if code in _UNKNOWN_CA and tls.ca is None:
        return DistrustError(
            f"the certificate of {address} is signed by no CA that this machine "
            "trusts: name the CA's file by --tls-ca"
        )
    if code in _UNKNOWN_CA:
        return DistrustError(
            f"the certificate of {address} is not signed by the CA of {tls.ca}: give "
            "the file of its own CA by --tls-ca"
        )
    if code == _EXPIRED:
        return DistrustError(
            f"the certificate of {address}, or of its CA, has expired: renew it there"
        )
    if code == _NOT_YET_VALID:
        return DistrustError(
            f"the certificate of {address} is not valid yet: a clock may be wrong, "
            "there or here"
        )
    return DistrustError(
        f"the certificate of {address} is not to be trusted: {error.verify_message}"
    )


def name_mismatch(address: str, name: str, names: list[str]) -> DistrustError:
    """Return the error for a certificate of other names."""
    has = f"for {', '.join(names)}" if names else "without any name that counts"
    return DistrustError(
        f"the certificate of {address} is {has}, not for {name}: connect by such a "
        "name, or say which one to expect by --tls-server-name"
    )


def _meaning(reason: str, address: str, tls: Tls) -> str:
    """Return what a failure means, by OpenSSL's name for it."""

    def says(*parts: str) -> bool:
        return any(part in reason for part in parts)

    if says(*_NO_TLS):
        return (
            f"{address} does not speak TLS: use the server's TLS port, or a URL that "
            "begins with redis://"
        )
    if says(*_WANTS_CERTIFICATE) and tls.cert is None:
        return (
            f"{address} wants a client certificate: give one by --tls-cert and "
            "--tls-key"
        )
    if says(*_TOO_OLD):
        return f"{address} speaks no TLS 1.2 or later: allow that by its tls-protocols"
    if all(part in reason for part in _REFUSES_CERTIFICATE) or says("UNKNOWN_CA"):
        return (
            f"{address} does not accept the client certificate {tls.cert}: it must be "
            "signed by a CA of the server's tls-ca-cert-file, and be valid"
        )
    return f"TLS with {address} failed: {reason.lower().replace('_', ' ')}"
