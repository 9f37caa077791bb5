"""Who is at the other end of a connection, and what a token file must be like."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import stat
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from reemote.server.callers import Token, TokenError, peer_user
from tests.leaks import open_files
from tests.server.clients import NOBODY, Serving, as_user, needs_root, settings_in

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell")
WAYS = pytest.mark.parametrize("tables", [None, "/proc/net"], ids=["asked", "looked up"])
"""Both ways to find out, of which a kernel may have one only."""


class Pair:
    """Both ends of a connection over the loopback interface."""

    def __init__(self, address: str = "127.0.0.1", client: str | None = None, user: int | None = None) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, 0), family=family)
        port = self.listener.getsockname()[1]
        with as_user(user):
            self.client = socket.create_connection((client or address, port), timeout=10)
        self.server, _ = self.listener.accept()
        self.server.settimeout(10)

    def close(self) -> None:
        for each in (self.client, self.server, self.listener):
            each.close()

    def user(self, tables: str | None) -> int | None:
        """Find out as the guard does: by what the server's end knows."""
        peer, own = self._name(self.server.getpeername()), self._name(self.server.getsockname())
        return peer_user(peer, own, tables)

    def saved(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return self._name(self.server.getpeername()), self._name(self.server.getsockname())

    @staticmethod
    def _name(name: tuple[str, int]) -> tuple[str, int]:
        return name[0], name[1]


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs the address ::1")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with contextlib.closing(Pair()) as pair:
        yield pair


# Peers


@linux
@WAYS
def test_a_connection_of_ours(pair: Pair, tables: str | None) -> None:
    assert pair.user(tables) == os.geteuid()


@linux
@needs_root
@WAYS
@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param("::1", marks=ipv6)])
def test_a_connection_of_somebody_else(tables: str | None, address: str) -> None:
    with contextlib.closing(Pair(address, user=NOBODY)) as pair:
        assert pair.user(tables) == NOBODY


@linux
@ipv6
@WAYS
def test_ipv6(tables: str | None) -> None:
    with contextlib.closing(Pair("::1")) as pair:
        assert pair.user(tables) == os.geteuid()


@linux
@ipv6
@needs_root
@WAYS
def test_an_ipv4_address_within_ipv6(tables: str | None) -> None:
    """A client that goes to ::ffff:127.0.0.1 stands in the table of IPv6; it arrives over IPv4."""
    listener = socket.create_server(("127.0.0.1", 0))
    with as_user(NOBODY):
        client = socket.socket(socket.AF_INET6)
    with listener, client:
        client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        server, peer = listener.accept()
        with server:
            assert peer[0] == "127.0.0.1"
            assert peer_user(peer, server.getsockname(), tables) == NOBODY


@linux
@ipv6
@needs_root
@WAYS
def test_a_server_of_both_kinds(tables: str | None) -> None:
    """There the other end of an IPv4 connection is called ::ffff:127.0.0.1."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        with as_user(NOBODY):
            client = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
        with client:
            server, peer = listener.accept()
            with server:
                assert peer[0] == "::ffff:127.0.0.1"
                assert peer_user(peer[:2], server.getsockname()[:2], tables) in (NOBODY, None)


@linux
@WAYS
def test_the_other_direction_is_another_connection(pair: Pair, tables: str | None) -> None:
    client, server = pair.saved()
    assert peer_user((client[0], server[1]), (server[0], client[1]), tables) in (os.geteuid(), None)
    assert peer_user(client, (server[0], 1), tables) is None
    assert peer_user((client[0], 1), server, tables) is None
    assert peer_user(("127.0.0.2", client[1]), server, tables) is None


@linux
@WAYS
def test_a_connection_that_its_owner_has_closed(pair: Pair, tables: str | None) -> None:
    """The kernel says then that it belongs to user 0."""
    ends = pair.saved()
    pair.client.close()
    assert pair.server.recv(1) == b""
    assert peer_user(*ends, tables) is None
    pair.server.close()
    assert peer_user(*ends, tables) is None


@linux
@WAYS
def test_a_connection_that_its_owner_has_closed_with_data_on_its_way(pair: Pair, tables: str | None) -> None:
    ends = pair.saved()
    pair.client.sendall(b"GET / HTTP/1.1\r\n")
    pair.client.close()
    assert peer_user(*ends, tables) is None
    assert pair.server.recv(100) == b"GET / HTTP/1.1\r\n"
    assert peer_user(*ends, tables) is None


@linux
@WAYS
def test_a_connection_of_which_one_half_is_closed(pair: Pair, tables: str | None) -> None:
    pair.client.shutdown(socket.SHUT_WR)
    assert pair.server.recv(1) == b""
    assert pair.user(tables) is None


@linux
@WAYS
def test_a_connection_that_was_reset(pair: Pair, tables: str | None) -> None:
    ends = pair.saved()
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.client.close()
    with pytest.raises(ConnectionResetError):
        pair.server.recv(1)
    assert peer_user(*ends, tables) is None


@linux
@WAYS
def test_a_socket_that_listens_is_no_connection(pair: Pair, tables: str | None) -> None:
    port = pair.listener.getsockname()[1]
    assert peer_user(("127.0.0.1", port), ("0.0.0.0", 0), tables) is None
    assert peer_user(("127.0.0.1", port), ("127.0.0.1", 1), tables) is None
    assert peer_user(("0.0.0.0", 0), ("127.0.0.1", port), tables) is None


@linux
@WAYS
def test_what_is_no_address(tables: str | None) -> None:
    for name in ("", "localhost", "/run/socket", "127.0.0.1%lo", "::1 "):
        assert peer_user((name, 1), ("127.0.0.1", 2), tables) is None
        assert peer_user(("127.0.0.1", 1), (name, 2), tables) is None
    assert peer_user(("::1", 1), ("127.0.0.1", 2), tables) is None


@linux
@WAYS
def test_nothing_stays_open(pair: Pair, tables: str | None) -> None:
    before = open_files()
    for _ in range(20):
        pair.user(tables)
    assert open_files() == before


def row(client: str, server: str, state: str, user: int, inode: int) -> str:
    return f"   0: {client} {server} {state} 00000000:00000000 00:00000000 00000000 {user:5d}        0 {inode} 1 0 20\n"


CLIENT, SERVER = "0100007F:1000", "0100007F:1F41"
LONG_CLIENT = "0000000000000000FFFF00000100007F:1000"
LONG_SERVER = "0000000000000000FFFF00000100007F:1F41"


@linux
@pytest.mark.skipif(sys.byteorder != "little", reason="the rows are those of a little-endian machine")
@pytest.mark.parametrize(
    ("tcp", "tcp6", "user"),
    [
        ([row(CLIENT, SERVER, "01", 7, 99)], [], 7),
        ([], [row(LONG_CLIENT, LONG_SERVER, "01", 7, 99)], 7),
        ([row(SERVER, CLIENT, "01", 0, 98), row(CLIENT, SERVER, "01", 7, 99)], [], 7),
        ([row(CLIENT, SERVER, "01", 0, 0)], [], None),  # closed, and not yet told
        ([row(CLIENT, SERVER, "06", 0, 0)], [], None),  # TIME_WAIT
        ([row(CLIENT, SERVER, "04", 0, 0)], [], None),  # FIN_WAIT1
        ([row(CLIENT, SERVER, "05", 0, 0)], [], None),  # FIN_WAIT2
        ([row(CLIENT, SERVER, "08", 7, 99)], [], None),  # CLOSE_WAIT
        ([row(CLIENT, SERVER, "03", 7, 99)], [], None),  # SYN_RECV
        ([row(CLIENT, "00000000:0000", "0A", 7, 99)], [], None),  # LISTEN
        # Where the tables do not agree, nobody is known.
        ([row(CLIENT, SERVER, "01", 7, 99)], [row(LONG_CLIENT, LONG_SERVER, "01", 8, 97)], None),
        ([row(CLIENT, SERVER, "01", 7, 99), row(CLIENT, SERVER, "06", 0, 0)], [], None),
        # The user that stands for all whom a namespace does not know.
        ([row(CLIENT, SERVER, "01", 65534, 99)], [], None),
        ([], [], None),
    ],
)
def test_rows_of_the_tables(tmp_path: Path, tcp: list[str], tcp6: list[str], user: int | None) -> None:
    for name, rows in (("tcp", tcp), ("tcp6", tcp6)):
        (tmp_path / name).write_text("  sl  local_address rem_address   st ...\n" + "".join(rows))
    assert peer_user(("127.0.0.1", 4096), ("127.0.0.1", 8001), str(tmp_path)) == user


@linux
def test_no_tables_at_all(tmp_path: Path) -> None:
    assert peer_user(("127.0.0.1", 4096), ("127.0.0.1", 8001), str(tmp_path)) is None


def test_on_other_systems_nobody_is_known(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pair.user(None) is None


CLIENT_PROGRAM = textwrap.dedent(
    """
    import encodings.idna, http.client, os, sys
    user, port, token, *paths = sys.argv[1:]
    # Changed here, since others may not be able to start this Python.
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    for path in paths:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        print(answer.status, end=" ")
    try:
        print(open(token).read())
    except PermissionError:
        print("and no token")
    """
)


@linux
@needs_root
def test_another_user_of_the_machine(tmp_path: Path) -> None:
    """A process of somebody else's gets 401 and no token, while the owner gets 200."""
    with Serving(settings_in(tmp_path)) as serving:
        assert serving.get("/healthz").status == 200
        Token(serving.settings.token_file).value()
        paths = ("/healthz", "/docs", "/openapi.json", "/reemote/inventory/get", "/metrics", "/missing")
        given = (str(NOBODY), str(serving.address[1]), str(serving.settings.token_file), *paths)
        done = subprocess.run([sys.executable, "-c", CLIENT_PROGRAM, *given], capture_output=True, text=True)
        assert done.stdout == "401 " * len(paths) + "and no token\n", done.stderr
        assert serving.get("/healthz").status == 200


# Tokens


@pytest.fixture
def token(tmp_path: Path) -> Token:
    return Token(tmp_path / "new" / "token")


def test_a_token_is_made_for_its_owner_alone(token: Token) -> None:
    value = token.value()
    assert stat.S_IMODE(token.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.path.parent.stat().st_mode) == 0o700
    assert len(value) == 43  # 256 bits
    assert token.value() == Token(token.path).value() == value
    assert [each.name for each in token.path.parent.iterdir()] == ["token"]


def test_a_umask_does_not_open_it(token: Token) -> None:
    old = os.umask(0)
    try:
        token.value()
    finally:
        os.umask(old)
    assert stat.S_IMODE(token.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666, 0o620, 0o610])
def test_a_file_that_others_can_open(token: Token, mode: int) -> None:
    value = token.value()
    token.path.chmod(mode)
    with pytest.raises(TokenError, match="can be read by others"):
        token.value()
    with pytest.raises(TokenError):
        token.admits(f"Bearer {value}")
    assert stat.S_IMODE(token.path.stat().st_mode) == mode
    assert token.rotate() != value
    token.value()


def test_a_link_is_not_followed(token: Token, tmp_path: Path) -> None:
    value = token.value()
    (tmp_path / "link").symlink_to(token.path)
    with pytest.raises(TokenError, match="symbolic link"):
        Token(tmp_path / "link").admits(f"Bearer {value}")
    (tmp_path / "nowhere").symlink_to(tmp_path / "made")
    with pytest.raises(TokenError, match="symbolic link"):
        Token(tmp_path / "nowhere").value()
    assert not (tmp_path / "made").exists()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(mode=0o700)
    for name in ("pipe", "directory"):
        with pytest.raises(TokenError):
            Token(tmp_path / name).value()
    with pytest.raises(TokenError):
        Token(Path("/dev/null")).value()


@pytest.mark.parametrize("text", ["", "\n", "short", "x" * 31, "x" * 20 + " " + "x" * 20, "ü" * 40, "x" * 40 + "\0"])
def test_a_file_without_a_token(token: Token, text: str) -> None:
    token.path.parent.mkdir()
    token.path.write_text(text)
    token.path.chmod(0o600)
    with pytest.raises(TokenError, match="holds no token"):
        token.value()
    with pytest.raises(TokenError):
        token.admits(f"Bearer {text}")
    assert token.path.read_text() == text


@needs_root
def test_a_file_of_somebody_else(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    value = token.value()
    os.chown(token.path, NOBODY, NOBODY)
    with pytest.raises(TokenError, match="belongs to another user"):
        token.admits(f"Bearer {value}")


def test_a_new_token_counts_at_once(token: Token) -> None:
    old = token.value()
    assert token.admits(f"Bearer {old}")
    new = Token(token.path).rotate()
    assert not token.admits(f"Bearer {old}")
    assert token.admits(f"Bearer {new}")


def test_a_token_of_the_same_size_and_time_counts_at_once(token: Token) -> None:
    """Neither time nor size nor inode of the file tell that it is another one."""
    old = token.value()
    status = token.path.stat()
    with token.path.open("r+") as file:
        file.write("y" * len(old))
    os.utime(token.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not token.admits(f"Bearer {old}")
    assert token.admits("Bearer " + "y" * len(old))


def test_names_of_tokens_give_nothing_away(token: Token) -> None:
    value = token.value()
    name = token.admits(f"Bearer {value}")
    assert name is not None
    assert len(name) == 8
    assert name not in value
    assert token.admits(f"Bearer {token.rotate()}") != name


def test_tokens_are_compared_in_constant_time(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, value: bytes) -> bool:
        compared.append((given, value))
        return False

    value = token.value()
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert token.admits(f"Bearer {value}") is None
    assert compared == [(value.encode(), value.encode())]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenError):
        Token(tmp_path / "file" / "token").value()
    with pytest.raises(TokenError, match="cannot be written"):
        Token(tmp_path / "file" / "token").rotate()
