"""Connections of asyncssh's without what a fleet pays for in vain.

``asyncssh.connect()`` works out all options anew for each connection, in a thread, asks the server
twice before it logs in, writes each packet by itself and an empty one before it, and puts together
log entries that nobody reads. None of that can be turned off. So this is the one place that knows
asyncssh from inside: its function ``_connect``, the attributes of its options, and of its connections and
channels some methods without documentation, and some attributes with an underscore.
``tests/ssh/test_lean.py`` fails when they change.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import asyncssh
from asyncssh.connection import _connect
from asyncssh.logging import SSHLogger
from asyncssh.packet import SSHPacketLogger, String, UInt32

_IGNORE, _NEWKEYS, _OPEN = 2, 21, 90
"""The numbers of packets: one that is empty, one after which other keys hold, one that opens a channel (RFC 4250)."""

_WINDOW, _PACKET = 2 * 1024 * 1024, 32 * 1024
"""Bytes that the host may send ahead on the channel of a command, and in one packet; as asyncssh has them."""

_REFUSED = 0xFFFFFFFF
"""The reason code where a channel is open and takes no command, as asyncssh has it."""

_QUERY, _SIGNED = b"\0", b"\1"
"""Whether a request for a login by key asks if the key would do, or proves it (RFC 4252, section 7)."""

_BATCH = 64 * 1024
"""Bytes that are written at once, even if more is to come."""

_QUICK = 48
"""How many times data has to come until we leave it to the system when to acknowledge it."""

_NO_DELAY = getattr(socket, "TCP_QUICKACK", None)
"""Linux has it. Without it a small packet of the server's may wait 40 ms for the acknowledgement of the one before,
as long as the server has not turned Nagle's algorithm off: sshd does so with the first command."""


async def connect(
    options: asyncssh.SSHClientConnectionOptions,
    host: str,
    port: int,
    *,
    client_factory: Callable[[], asyncssh.SSHClient],
    known_hosts: Any,
    password: str | None,
    flags: int = 0,
    sock: socket.socket | None = None,
) -> asyncssh.SSHClientConnection:
    """Connect as ``asyncssh.connect()`` does, by options that are worked out already, and without its time limit.

    Args:
        options: All options but those that have an argument here; they are not changed, and may be shared. Those that
            were worked out for a host, as an ``ssh_config`` needs, are for that one.
        host: The name or address to connect to.
        port: The port.
        client_factory: Makes the object that asyncssh asks about keys.
        known_hosts: The keys that are trusted, in a form that asyncssh takes.
        password: The password of the user.
        flags: Of ``getaddrinfo()``.
        sock: A socket that is connected already.

    Raises:
        asyncssh.Error: The login failed.
        OSError: The host cannot be reached.
    """
    own: Any = copy.copy(options)
    # asyncssh works all out again from these for a host whose name it completes.
    given = {"host": host, "port": port, "client_factory": client_factory, "known_hosts": known_hosts}
    own.kwargs = {**own.kwargs, **given, "password": password}
    if not cast(Any, options).host:
        own.orig_host, own.host, own.port = host, host, port
    own.protocol_factory, own.known_hosts, own.password = client_factory, known_hosts, password
    own.agent_path = own.agent_path or None  # where there is none, asyncssh would look for it all the same
    # The signature that a server wants is noted in the key; servers differ.
    own.client_keys = [copy.copy(key) for key in own.client_keys or ()]
    loop = asyncio.get_running_loop()
    config = own.kwargs.get("config")  # jump hosts read it, too
    made = await _connect(
        own, config, loop, flags, sock, lambda: LeanConnection(loop, own, wait="auth"), "Connecting to"
    )
    made.forget()
    return cast(asyncssh.SSHClientConnection, made)


class _Terse(SSHPacketLogger):
    """Puts nothing together of a packet unless packets are logged."""

    def log_sent_packet(self, pkttype: int, pktid: int | None, packet: Any, note: str = "") -> None:
        """Log a packet."""
        if _packets_are_logged(self.logger):
            super().log_sent_packet(pkttype, pktid, packet, note)

    def log_received_packet(self, pkttype: int, pktid: int | None, packet: Any, note: str = "") -> None:
        """Log a packet."""
        if _packets_are_logged(self.logger):
            super().log_received_packet(pkttype, pktid, packet, note)


class LeanConnection(_Terse, asyncssh.SSHClientConnection):
    """A connection that writes and asks no more than it has to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Any, wait: str) -> None:
        self._quiet: SSHLogger | None = None
        self._quick = 0
        self._needs_empty_packets: bool | None = None
        self._proves_key = _begins_with_own_key(options)
        self._socket: Any = None
        super().__init__(loop, options, wait=wait)

    def forget(self) -> None:
        """Let go of what was for the login only: some KiB, for each connection that stands."""
        self._client_kexinit = self._server_kexinit = b""
        self._server_sig_algs = set()
        self._client_keys = []
        self._options.kwargs = {}

    # What is logged

    @property
    def logger(self) -> SSHLogger:
        """The logger of the connection; those of its channels are made from it."""
        if self._quiet is None:
            self._quiet = Quiet.of(super().logger)
        return self._quiet

    # What is written

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, on a transport that gathers what is written."""
        self._socket = transport.get_extra_info("socket")
        if _NO_DELAY is not None and getattr(self._socket, "family", None) in (socket.AF_INET, socket.AF_INET6):
            self._quick = _QUICK
        super().connection_made(cast(asyncio.BaseTransport, Batch(cast(asyncio.Transport, transport))))

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        """Take what came, and acknowledge it."""
        if self._quick:
            self._quick -= 1
            self._socket.setsockopt(socket.IPPROTO_TCP, _NO_DELAY, 1)
        super().data_received(data, datatype)

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        """Send a packet, without the empty one that asyncssh puts before each.

        That hides the initialisation vector of the ciphers in CBC mode (RFC 4251, section 9.3.1); others need it not.
        """
        if pkttype == _IGNORE and not self._is_chained():
            return
        if pkttype == _NEWKEYS:
            self._needs_empty_packets = None
        if handler is not None and not _packets_are_logged(self.logger):
            handler = None  # it would put together what nobody reads
        super().send_packet(pkttype, *args, handler=handler)

    def _is_chained(self) -> bool:
        if self._needs_empty_packets is None:
            cipher = self.get_extra_info("send_cipher")
            if cipher is None:
                return False  # nothing is encrypted yet
            self._needs_empty_packets = "cbc" in cipher
        return self._needs_empty_packets

    # How the login goes

    def try_next_auth(self, *, next_method: bool = False) -> None:
        """Begin with the key, without asking first which ways to log in there are."""
        if self._proves_key and self._auth_methods == [b"none"]:
            self._auth_methods = [b"publickey"]
        super().try_next_auth(next_method=next_method)

    async def send_userauth_request(self, method: bytes, *args: bytes, key: Any = None, trivial: bool = True) -> None:
        """Prove a key of ours at once, without asking first whether it would do."""
        if self._proves_key and method == b"publickey" and key is None and args[0] == _QUERY:
            pair = getattr(self.auth, "_keypair", None)
            if _is_own(pair):
                args, key, trivial = (_SIGNED, *args[1:]), pair, False
        await super().send_userauth_request(method, *args, key=key, trivial=trivial)


def _begins_with_own_key(options: Any) -> bool:
    """Whether the login begins with a key that signs here and now, without an agent, a device or a person."""
    preferred = options.preferred_auth
    return bool(
        options.public_key_auth
        and options.client_keys
        and _is_own(options.client_keys[0])
        and not options.agent_path
        and not options.pkcs11_provider
        and (preferred == () or preferred[0] == "publickey")
    )


def _is_own(pair: Any) -> bool:
    return isinstance(pair, asyncssh.SSHKeyPair) and pair.get_key_type() == "local" and not pair.use_executor


class LeanChannel(_Terse, asyncssh.SSHClientChannel[bytes]):
    """A channel for one command, opened without tasks of its own.

    For sessions without options: no terminal, no variables, nothing forwarded.

    Args:
        connection: The connection.
        session: Is told what comes; its ``connection_made()`` is called when the command may begin.
        command: What the host is asked to run.
        input_ends: Whether the host is told at once that no input follows.
    """

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        session: asyncssh.SSHClientSession[bytes],
        command: str,
        *,
        input_ends: bool,
    ) -> None:
        super().__init__(connection, asyncio.get_running_loop(), "replace", None, "strict", _WINDOW, _PACKET)
        self._owner = session
        self._text = command
        self._input_ends = input_ends
        self._is_begun = False
        self._failure: BaseException | None = None
        self._askers: list[asyncio.Future[asyncssh.SSHClientChannel[bytes]]] = []
        self._open_waiter = cast(Any, _Answer(self._request, self._fail))
        place = UInt32(cast(int, self._recv_chan)) + UInt32(_WINDOW) + UInt32(_PACKET)
        connection.send_packet(_OPEN, String("session"), place, handler=self)

    def opened(self) -> asyncio.Future[asyncssh.SSHClientChannel[bytes]]:
        """Give a future that is done when the host has taken the command, or raises what ``create_session()`` raises.

        Who gives up one may ask for another.
        """
        asked = self._loop.create_future()
        self._askers.append(asked)
        self._tell()
        return asked

    def _tell(self) -> None:
        for asked in self._askers:
            if asked.done():
                continue
            if self._failure is not None:
                asked.set_exception(self._failure)
            elif self._is_begun:
                asked.set_result(self)

    def _request(self, _: Any) -> None:
        self._session = self._owner
        self._command = self._text
        self._owner.connection_made(self)
        self._request_waiters.append(cast(Any, _Answer(self._begin, self._fail)))
        self._send_request(b"exec", String(self._text.encode("utf-8", "surrogateescape")), want_reply=True)
        if self._input_ends:
            self.write_eof()

    def _begin(self, is_taken: bool) -> None:
        if not is_taken:
            self.close()
            self._fail(asyncssh.ChannelOpenError(_REFUSED, "Session request failed"))
            return
        self._is_begun = True
        self._owner.session_started()
        self._tell()
        self.resume_reading()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._tell()


class _Answer(NamedTuple):
    """Stands where asyncssh has a future, and hands on what comes at once, not a turn of the loop later."""

    set_result: Callable[[Any], None]
    set_exception: Callable[[BaseException], None]

    def cancelled(self) -> bool:
        """Nobody gives it up."""
        return False


class Batch:
    """Gathers what is written in one turn of the event loop, and writes it at once.

    Each write is a system call and a packet on the network, and wakes the server.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []
        self._size = 0
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        """Write, by the end of this turn of the loop at the latest."""
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def close(self) -> None:
        """Write what is left, and close."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what has been written before is on its way."""
        self.flush()
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Quiet(SSHLogger):
    """A logger of asyncssh's that puts an entry together only where somebody reads it."""

    @classmethod
    def of(cls, logger: SSHLogger) -> Quiet:
        """Make one that logs as another does."""
        return cls(logger.logger, context=logger._context)

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log, if somebody reads it."""
        if self.isEnabledFor(level):
            super().log(level, msg, *args, **kwargs)


def _packets_are_logged(logger: SSHLogger) -> bool:
    return logger._debug_level >= 3 and logger.isEnabledFor(logging.DEBUG)
