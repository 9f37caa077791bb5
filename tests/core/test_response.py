"""Process records, responses, and the list of them."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from reemote.core import errors
from reemote.core.errors import (
    CommandFailed,
    CommandKilled,
    ConnectionLost,
    ConnectionRefused,
    ExecutionError,
    HostError,
    SFTPError,
)
from reemote.core.response import Completed, FailureName, Response, Responses, as_json, leaves
from reemote.inventory import Authentication, Connection, InventoryItem

SEVEN = ["command", "subsystem", "exit_status", "exit_signal", "returncode", "stdout", "stderr"]
KILLED = ("KILL", False, "", "")


def good(host: str = "web1", value: Any = 1, *, changed: bool = False) -> Response[Any]:
    return Response(host=host, value=value, changed=changed, error=False)


def refused(host: str = "web2") -> Response[Any]:
    return Response.of_failure(ConnectionRefused("nothing listens"), host)


# Completed


def test_a_record_has_seven_keys_in_order() -> None:
    assert list(Completed()) == SEVEN
    assert list(Completed(stderr="e", command="c", exit_status=1)) == SEVEN


def test_a_record_of_nothing_is_a_success_without_output() -> None:
    assert Completed() == {
        "command": None, "subsystem": None, "exit_status": 0, "exit_signal": None, "returncode": 0,
        "stdout": "", "stderr": "",
    }  # fmt: skip


def test_keys_are_attributes_too() -> None:
    record = Completed(command="uptime", exit_status=7, stdout="out", stderr="err")
    assert [getattr(record, key) for key in SEVEN] == [record[key] for key in SEVEN]
    assert (record.command, record.exit_status, record.stdout, record.stderr) == ("uptime", 7, "out", "err")


def test_an_unknown_attribute_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"Completed has no 'stdin': it has command, subsystem, exit_status"):
        _ = Completed().stdin  # type: ignore[attr-defined]
    assert not hasattr(Completed(), "stdin")


def test_the_return_code_is_the_exit_status_unless_given() -> None:
    assert Completed(exit_status=7).returncode == 7
    assert Completed(exit_status=None).returncode is None
    assert Completed(exit_status=None, exit_signal=KILLED, returncode=-9).returncode == -9


def test_bytes_that_are_no_text_show_as_escapes_and_stay_exact() -> None:
    record = Completed(stdout=b"x\xffy\0z", stderr=b"\x80\n")
    assert record["stdout"] == "x\\xffy\0z"
    assert record["stderr"] == "\\x80\n"
    assert record.stdout_bytes == b"x\xffy\0z"
    assert record.stderr_bytes == b"\x80\n"
    assert json.loads(json.dumps(record))["stdout"] == "x\\xffy\0z"


def test_another_encoding_than_utf_8() -> None:
    record = Completed(stdout="caf\u00e9".encode("latin-1"), encoding="latin-1")
    assert record.stdout == "caf\u00e9"
    assert record.stdout_bytes == b"caf\xe9"


@given(st.binary())
def test_every_output_keeps_its_bytes_and_can_be_written_as_json(output: bytes) -> None:
    record = Completed(stdout=output, stderr=output)
    assert record.stdout_bytes == record.stderr_bytes == output
    assert isinstance(record["stdout"], str)
    record["stdout"].encode()
    assert json.loads(json.dumps(record))["stdout"] == record.stdout == json.loads(as_json(record))["stdout"]


@given(st.binary())
def test_output_given_as_text_has_its_bytes_too(output: bytes) -> None:
    text = output.decode("utf-8", "surrogateescape")
    assert Completed(stdout=text).stdout_bytes == output


def test_a_record_survives_copies_with_its_bytes() -> None:
    record = Completed(command="c", stdout=b"\xff")
    for same in (pickle.loads(pickle.dumps(record)), copy.copy(record), copy.deepcopy(record)):
        assert type(same) is Completed
        assert same == record
        assert same.stdout_bytes == b"\xff"


def test_a_success_does_not_raise() -> None:
    Completed(exit_status=0, stderr="warning").raise_for_status()
    assert Completed(exit_status=0).failure() is None


def test_a_non_zero_exit_status_raises_the_last_line_of_standard_error() -> None:
    record = Completed(command="apt-get\nupdate", exit_status=100, stderr="noise\nE: locked\n\n")
    with pytest.raises(CommandFailed) as caught:
        record.raise_for_status()
    assert caught.value.completed is record
    assert caught.value.outcome == "completed"
    assert str(caught.value) == "CommandFailed: exit status 100 of 'apt-get': E: locked"


def test_a_signal_raises() -> None:
    with pytest.raises(CommandKilled, match="signal KILL ended 'sleep 9'") as caught:
        Completed(command="sleep 9", exit_status=None, exit_signal=KILLED, returncode=-9).raise_for_status()
    assert caught.value.kind == "CommandKilled"


def test_no_exit_status_and_no_signal_is_never_a_success() -> None:
    assert isinstance(Completed(command="c", exit_status=None).failure(), HostError)


# Response


def test_a_response_has_four_keys_in_order() -> None:
    assert list(good()) == ["host", "value", "changed", "error"]
    assert json.dumps(good(value="v")) == '{"host": "web1", "value": "v", "changed": false, "error": false}'


def test_a_response_reads_like_an_object_all_the_way_down() -> None:
    response = good(value=Completed(stdout="Hello\n"), changed=True)
    assert response.value.stdout == response["value"]["stdout"] == "Hello\n"
    assert (response.host, response.changed, response.error) == ("web1", True, False)


def test_a_success_has_no_detail_and_is_complete() -> None:
    assert (good().detail, good().outcome, good().completed) == ("", "completed", None)
    good().raise_for_error()


def test_an_unknown_attribute_of_a_response_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="Response has no 'stdout': it has host, value, changed, error"):
        _ = good().stdout  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="'stdout'"):
        _ = good()["stdout"]


def test_a_failed_response_says_what_a_person_needs() -> None:
    response = refused()
    assert list(response) == ["host", "value", "changed", "error", "detail", "outcome"]
    assert response == {
        "host": "web2", "value": "ConnectionRefusedError", "changed": False, "error": True,
        "detail": "nothing listens", "outcome": "not_started",
    }  # fmt: skip
    assert (response.detail, response.outcome, response.completed) == ("nothing listens", "not_started", None)


def test_a_failed_response_has_the_record_of_a_command_that_had_started() -> None:
    record = Completed(command="make", exit_status=None, stdout="half")
    response = Response.of_failure(ConnectionLost("the connection was lost", completed=record), "web1")
    assert list(response)[-3:] == ["detail", "outcome", "completed"]
    assert response.completed is record
    assert response["outcome"] == "unknown"
    assert json.loads(json.dumps(response))["completed"]["stdout"] == "half"


@pytest.mark.parametrize(
    ("outcome", "changed"), [("not_started", False), ("completed", True), ("unknown", True)], ids=str
)
def test_a_failure_has_changed_something_unless_it_did_not_start(outcome: Any, changed: bool) -> None:
    assert Response.of_failure(HostError("d", outcome=outcome), "h")["changed"] is changed
    assert Response.of_failure(HostError("d", outcome=outcome), "h", reads=True)["changed"] is False


KINDS = [
    ("refused", errors.ConnectionRefused, "ConnectionRefusedError"),
    ("connect timeout", errors.ConnectTimeout, "ConnectTimeout"),
    ("name", errors.HostNotFound, "HostNotFound"),
    ("route", errors.HostUnreachable, "HostUnreachable"),
    ("lost", errors.ConnectionLost, "ConnectionLost"),
    ("unknown key", errors.HostKeyNotVerifiable, "HostKeyNotVerifiable"),
    ("changed key", errors.HostKeyChanged, "HostKeyChanged"),
    ("revoked key", errors.HostKeyRevoked, "HostKeyRevoked"),
    ("login", errors.PermissionDenied, "PermissionDenied"),
    ("protocol", errors.ProtocolError, "ProtocolError"),
    ("channel", errors.ChannelOpenError, "ChannelOpenError"),
    ("exit", errors.CommandFailed, "CommandFailed"),
    ("signal", errors.CommandKilled, "CommandKilled"),
    ("timeout", errors.CommandTimeout, "CommandTimeout"),
    ("space", errors.NoSpaceLeft, "NoSpaceLeft"),
    ("cancelled", errors.Cancelled, "Cancelled"),
]


@pytest.mark.parametrize(("cls", "name"), [case[1:] for case in KINDS], ids=[case[0] for case in KINDS])
def test_each_failure_has_its_name_and_its_class(cls: type[HostError], name: str) -> None:
    response = Response.of_failure(cls("why"), "web1")
    assert response["value"] == name
    assert type(response.to_error()) is cls
    assert str(response.to_error()) == f"web1: {name}: why"


def test_a_file_failure_keeps_the_name_that_sftp_gives_it() -> None:
    response = Response.of_failure(SFTPError("/etc/x", kind="SFTPNoSuchFile"), "web1")
    assert response["value"] == "SFTPNoSuchFile"
    error = response.to_error()
    assert type(error) is SFTPError
    assert error.kind == "SFTPNoSuchFile"


def test_a_failure_of_a_kind_that_nobody_declared() -> None:
    response = Response.of_failure(HostError("odd", kind="Odd"), "web1")
    assert response["value"] == "Odd"
    assert type(response.to_error()) is HostError
    assert str(response.to_error()) == "web1: Odd: odd"


def test_raise_for_error_carries_the_response() -> None:
    response = refused()
    with pytest.raises(ConnectionRefused) as caught:
        response.raise_for_error()
    assert caught.value.response is response
    assert (caught.value.detail, caught.value.outcome) == ("nothing listens", "not_started")


# The value of a failed response


def test_the_value_of_a_failure_is_a_string() -> None:
    value = refused()["value"]
    assert isinstance(value, str)
    assert value == "ConnectionRefusedError"
    assert f"{value}" == str(value) == "ConnectionRefusedError"
    assert hash(value) == hash("ConnectionRefusedError")
    assert {"ConnectionRefusedError": 1}[value] == 1
    assert json.dumps([value]) == '["ConnectionRefusedError"]'
    assert json.dumps({value: 1}, indent=1) == '{\n "ConnectionRefusedError": 1\n}'
    assert repr(value) == "'ConnectionRefusedError'"
    assert value.startswith("Connection")


READS: dict[str, Any] = {
    "key": lambda value: value["stdout"],
    "attribute": lambda value: value.stdout,
    "nested attribute": lambda value: value.inventory_item.host,
    "index": lambda value: value[0],
    "slice": lambda value: value[:2],
    "iteration": list,
    "unpacking": lambda value: [*value],
    "length": len,
    "truth": bool,
    "not": lambda value: not value,
    "int": int,
    "float": float,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_into_a_failure_raises_what_went_wrong(read: Any) -> None:
    response = refused()
    with pytest.raises(HostError) as caught:
        read(response.value)
    assert type(caught.value) is ConnectionRefused
    assert caught.value.response is response
    assert str(caught.value) == "web2: ConnectionRefusedError: nothing listens"


def test_a_failure_raises_again_each_time() -> None:
    response = refused()
    raised = []
    for _ in range(2):
        with pytest.raises(ConnectionRefused) as caught:
            _ = response.value.stdout
        raised.append(caught.value)
    assert raised[0] is not raised[1]  # a traceback of its own each


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))], ids=["copy", "deepcopy", "pickle"]
)
def test_a_copy_of_a_failed_response_refuses_as_well(duplicate: Any) -> None:
    same = duplicate(refused())
    assert type(same) is Response
    assert same == refused()
    with pytest.raises(ConnectionRefused, match="web2"):
        _ = same["value"]["stdout"]


def test_the_name_of_a_failure_alone_can_be_pickled() -> None:
    name = pickle.loads(pickle.dumps(refused().value))
    assert name == "ConnectionRefusedError"
    with pytest.raises(ConnectionRefused):
        _ = name.stdout


def test_a_failure_name_has_no_special_methods_that_it_does_not_have() -> None:
    value = refused().value
    assert getattr(value, "__array__", None) is None
    assert not hasattr(FailureName("Odd"), "response")


# A step that did not run


def test_a_skipped_response_is_false_and_has_no_key() -> None:
    skipped: Response[Any] = Response()
    assert not skipped
    assert list(skipped) == []
    assert (skipped.detail, skipped.outcome, skipped.completed) == ("", "not_started", None)
    skipped.raise_for_error()


def test_reading_a_skipped_response_says_why_there_is_nothing() -> None:
    skipped: Response[Any] = Response()
    with pytest.raises(KeyError, match=r"value: the step did not run here.* its group does not include this host"):
        _ = skipped["value"]
    with pytest.raises(
        AttributeError, match=r"value: the step did not run here.* its group does not include this host"
    ):
        _ = skipped.value


def test_a_skipped_response_can_be_copied() -> None:
    for same in (copy.copy(Response()), copy.deepcopy(Response()), pickle.loads(pickle.dumps(Response()))):
        assert type(same) is Response
        assert not same


# Responses


def test_responses_tell_the_failed_and_the_changed_apart() -> None:
    first, second, third = good("a"), refused("b"), good("c", changed=True)
    responses = Responses([first, second, third])
    assert responses.failed == [second]
    assert responses.changed == [third]
    assert responses.by_host["c"] is third
    assert list(responses.by_host) == ["a", "b", "c"]
    with pytest.raises(KeyError, match="nowhere"):
        _ = responses.by_host["nowhere"]
    assert isinstance(responses, list)


def test_hosts_cannot_be_assigned_by_name() -> None:
    with pytest.raises(TypeError):
        Responses([good()]).by_host["web1"] = good()  # type: ignore[index]


def test_responses_without_a_failure_do_not_raise() -> None:
    Responses([good(), good("b")]).raise_for_errors()
    Responses().raise_for_errors()


def test_responses_with_failures_raise_one_error_for_each() -> None:
    responses = Responses([good("a"), refused("b"), Response.of_failure(ConnectionLost("gone"), "c")])
    with pytest.raises(ExecutionError, match=r"2 of 3 hosts failed") as caught:
        responses.raise_for_errors()
    assert [type(error) for error in caught.value.exceptions] == [ConnectionRefused, ConnectionLost]
    assert [error.response for error in caught.value.exceptions if isinstance(error, HostError)] == responses[1:]
    assert caught.value.responses is responses


def test_except_star_keeps_the_responses() -> None:
    responses = Responses([refused("b"), Response.of_failure(ConnectionLost("gone"), "c")])
    heard: list[str] = []

    def hear_one_kind() -> None:
        try:
            responses.raise_for_errors()
        except* ConnectionLost as lost:
            heard.extend(map(str, lost.exceptions))

    with pytest.raises(ExecutionError) as rest:
        hear_one_kind()
    assert heard == ["c: ConnectionLost: gone"]
    assert [str(error) for error in rest.value.exceptions] == ["b: ConnectionRefusedError: nothing listens"]
    assert rest.value.responses is responses


def test_errors_can_be_pickled() -> None:
    responses = Responses([refused("b")])
    error = responses[0].to_error()
    error.add_note("a note")
    same = pickle.loads(pickle.dumps(ExecutionError("1 of 1 hosts failed", [error], responses)))
    assert isinstance(same, ExecutionError)
    assert same.message == "1 of 1 hosts failed"
    assert same.responses == responses
    [inner] = same.exceptions
    assert type(inner) is ConnectionRefused
    assert (inner.outcome, inner.kind, inner.__notes__) == ("not_started", "ConnectionRefusedError", ["a note"])


def test_leaves_are_the_single_exceptions_of_groups_in_groups() -> None:
    one, two, three = ValueError(1), ValueError(2), ValueError(3)
    group = ExceptionGroup("outer", [one, ExceptionGroup("inner", [two, three])])
    assert list(leaves(group)) == [one, two, three]
    assert list(leaves(one)) == [one]


# JSON


class Custom:
    def __repr__(self) -> str:
        return "custom"


class Login(BaseModel):
    user: str
    password: SecretStr


def written(value: Any) -> Any:
    """What ``to_json`` makes of a value."""
    [response] = json.loads(Responses([good(value=value)]).to_json())
    assert list(response) == ["host", "value", "changed", "error"]
    return response["value"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ((1, "a", 2.5, True), [1, "a", 2.5, True]),
        ({"a": {"b": []}}, {"a": {"b": []}}),
        (b"text", "text"),
        (b"x\xffy", "x\\xffy"),
        ([b"\xff", {"k": b"\xfe"}], ["\\xff", {"k": "\\xfe"}]),
        ("\udcff", "\\udcff"),
        ({"\udcff": 1}, {"\\udcff": 1}),
        ("caf\u00e9 \U0001f600 \0", "caf\u00e9 \U0001f600 \0"),
        ({3: "three"}, {"3": "three"}),
        ({7}, [7]),
        (Custom(), "custom"),
        (SecretStr("CANARY"), "**********"),
        (Login(user="joe", password=SecretStr("CANARY")), {"user": "joe", "password": "**********"}),
    ],
    ids=repr,
)
def test_values_as_json(value: Any, expected: Any) -> None:
    assert written(value) == expected


def test_an_inventory_item_as_json_masks_all_its_secrets() -> None:
    item = InventoryItem(
        connection=Connection(host="h", password="CANARY", passphrase="CANARY"),
        authentication=Authentication(sudo_password="CANARY", su_password="CANARY"),
    )
    text = Responses([good(value=[item, {"deep": item}])]).to_json(indent=2)
    assert "CANARY" not in text
    assert json.loads(text)[0]["value"][0]["connection"]["password"] == "**********"


def test_responses_as_json_can_be_indented() -> None:
    assert Responses([refused()]).to_json(indent=4) == json.dumps([refused()], indent=4)
    assert "\n" not in Responses([refused(), good()]).to_json()


def test_no_responses_are_an_empty_list() -> None:
    assert Responses().to_json() == "[]"


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec=None)) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(anything)
def test_any_plain_value_can_be_written_as_json(value: Any) -> None:
    json.loads(Responses([good(value=value)]).to_json())


@given(st.text(min_size=1), st.text(), st.sampled_from(["not_started", "completed", "unknown"]))
def test_a_failure_makes_the_round_trip_through_its_response(kind: str, detail: str, outcome: Any) -> None:
    response = Response.of_failure(HostError(detail, outcome=outcome, kind=kind), "h")
    error = response.to_error()
    assert (error.kind, error.detail, error.outcome, error.response) == (kind, detail, outcome, response)
    assert Response.of_failure(error, "h") == response
    assert pickle.loads(pickle.dumps(response)) == response
