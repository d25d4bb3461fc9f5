"""Python's own XML-RPC client against the daemon: URL of the daemon as argument."""

import sys
import xmlrpc.client
from threading import Thread

URL = sys.argv[1]


def fault(function, *arguments):
    try:
        function(*arguments)
    except xmlrpc.client.Fault as raised:
        assert raised.faultCode == 1, raised
        return raised.faultString
    raise AssertionError("no fault")


def is_equal(got, expected):
    assert got == expected, f"{got!r} is not {expected!r}"


def the_session_of_the_original():
    daemon = xmlrpc.client.ServerProxy(URL, allow_none=True)
    is_equal(daemon.lock("resource1", "client1"), None)
    is_equal(
        fault(daemon.lock, "resource1", "client2"),
        "<class 'Exception'>:Resource already locked by 'client1'",
    )
    is_equal(daemon.lock("resource2", "client2"), None)
    is_equal(
        fault(daemon.unlock, "resource1", "client2"),
        "<class 'Exception'>:Resource locked by 'client1' cannot be unlocked by 'client2'",
    )
    is_equal(daemon.unlock("resource1", "client1"), None)
    is_equal(
        fault(daemon.unlock, "resource1", "client1"),
        "<class 'Exception'>:Resource not locked",
    )
    is_equal(daemon.unlock("resource2", "client2"), None)


def names_come_back_as_they_were_sent():
    daemon = xmlrpc.client.ServerProxy(URL, allow_none=True)
    names = [
        "o'neil", 'a"b', "a\"b'c", "back\\slash", "tab\there", "nl\nmid", "cr\rmid", "<&>]]>",
        "clïent-日本", "\x7f", "mid\xa0nbsp", "zero\u200bwidth", "line\u2028sep", "\ue000",
        "\U0001f512", "\U000e0001", "soft\xadhyphen", "a\u0301", "x" * 3000,
    ]
    for name in names:
        sent = name.replace("\r", "\n")  # as XML has it
        is_equal(daemon.lock("names", name), None)
        is_equal(
            fault(daemon.lock, "names", "other"),
            f"<class 'Exception'>:Resource already locked by {sent!r}",
        )
        is_equal(
            fault(daemon.unlock, "names", "'" + name),
            "<class 'Exception'>:Resource locked by "
            + f"{sent!r} cannot be unlocked by {chr(39) + sent!r}",
        )
        is_equal(daemon.unlock("names", name), None)


def resources_may_be_called_anything():
    daemon = xmlrpc.client.ServerProxy(URL)
    names = ["../up", "/etc/x", "a/b", "a%2Fb", ".hidden", "日本", "a b", "%", "nl\nmid", "."]
    for name in names:
        is_equal(fault(daemon.unlock, name, "c"), "<class 'Exception'>:Resource not locked")
    proxy = xmlrpc.client.ServerProxy(URL, allow_none=True)
    for name in names:
        is_equal(proxy.lock(name, "of " + name), None)
    for name in names:
        is_equal(
            fault(proxy.lock, name, "other"),
            f"<class 'Exception'>:Resource already locked by {'of ' + name!r}",
        )
        is_equal(proxy.unlock(name, "of " + name), None)


def other_values_are_refused_and_lock_nothing():
    daemon = xmlrpc.client.ServerProxy(URL, allow_none=True)
    odd = [None, 5, True, 1.5, xmlrpc.client.Binary(b"x"), xmlrpc.client.DateTime(0), ["a"], {"a": 1}]
    for value in odd:
        assert "must be a string" in fault(daemon.lock, "odd", value), value
        assert "must be a string" in fault(daemon.lock, value, "c"), value
        is_equal(fault(daemon.unlock, "odd", value), "<class 'Exception'>:Resource not locked")
    is_equal(daemon.lock("odd", "c"), None)
    for value in [None, 5, True, 1.5, ["a", None], {"a": 1}]:
        is_equal(
            fault(daemon.lock, "odd", value), "<class 'Exception'>:Resource already locked by 'c'"
        )
        is_equal(
            fault(daemon.unlock, "odd", value),
            f"<class 'Exception'>:Resource locked by 'c' cannot be unlocked by {value!r}",
        )
    is_equal(daemon.unlock("odd", "c"), None)
    assert "2 arguments" in fault(daemon.lock, {"resource": "odd", "client": "c"})


def introspection_is_that_of_the_original():
    daemon = xmlrpc.client.ServerProxy(URL)
    from xmlrpc.server import SimpleXMLRPCDispatcher

    theirs = SimpleXMLRPCDispatcher(allow_none=True, encoding=None)
    theirs.register_introspection_functions()
    names = [name for name in daemon.system.listMethods() if name.startswith("system.")]
    is_equal(names, theirs.system_listMethods())
    for name in names + ["lock", "unlock", "nope", ""]:
        expected = theirs.system_methodHelp(name) if name in names else ""
        is_equal(daemon.system.methodHelp(name), expected)
        is_equal(daemon.system.methodSignature(name), "signatures not supported")
    calls = xmlrpc.client.MultiCall(daemon)
    calls.lock("many", "c")
    is_equal(fault(calls), "<class 'Exception'>:method \"system.multicall\" is not supported")
    is_equal(
        fault(getattr(daemon, "lock.__call__"), "a", "b"),
        "<class 'Exception'>:method \"lock.__call__\" is not supported",
    )


def transports_may_differ():
    class Packing(xmlrpc.client.Transport):
        encode_threshold = 0  # every request is sent with gzip

    plain = xmlrpc.client.ServerProxy(URL, allow_none=True)
    packed = xmlrpc.client.ServerProxy(URL + "/some/path", transport=Packing(), allow_none=True)
    latin = xmlrpc.client.ServerProxy(URL, encoding="iso-8859-1", allow_none=True)
    is_equal(packed.lock("packed", "cliént"), None)
    is_equal(fault(plain.lock, "packed", "x"), "<class 'Exception'>:Resource already locked by 'cliént'")
    is_equal(latin.unlock("packed", "cliént"), None)


def too_long_is_said_and_not_a_broken_connection():
    daemon = xmlrpc.client.ServerProxy(URL, allow_none=True)
    assert "longer than" in fault(daemon.lock, "long", "x" * 100_000)
    for length in [2_000_000, 20_000_000]:
        try:
            daemon.lock("long", "x" * length)
            raise AssertionError("it was taken")
        except xmlrpc.client.ProtocolError as raised:
            is_equal(raised.errcode, 413)
    is_equal(fault(daemon.unlock, "long", "c"), "<class 'Exception'>:Resource not locked")


def many_at_a_time_get_it_once():
    won = []

    def contend(number):
        daemon = xmlrpc.client.ServerProxy(URL, allow_none=True)
        try:
            daemon.lock("once", str(number))
            won.append(number)
        except xmlrpc.client.Fault:
            pass

    threads = [Thread(target=contend, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_equal(len(won), 1)
    xmlrpc.client.ServerProxy(URL, allow_none=True).unlock("once", str(won[0]))


for check in [
    the_session_of_the_original,
    names_come_back_as_they_were_sent,
    resources_may_be_called_anything,
    other_values_are_refused_and_lock_nothing,
    introspection_is_that_of_the_original,
    transports_may_differ,
    too_long_is_said_and_not_a_broken_connection,
    many_at_a_time_get_it_once,
]:
    check()
    print("passed", check.__name__)
print("all passed")
