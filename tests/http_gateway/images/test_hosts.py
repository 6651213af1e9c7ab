"""URLs and addresses that images may come from."""

import pytest

from chassis.errors import InvalidArgument
from http_gateway.images.hosts import ImageHosts, RemoteUrl

LISTED = ImageHosts(["img.example.com", "*.cdn.example.org", "http://store:9000", "xn--bcher-kva.example"], [])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://img.example.com/a.png", RemoteUrl("https", "img.example.com", 443, "/a.png")),
        ("HTTPS://IMG.example.com.:443/a?b=%2F#c", RemoteUrl("https", "img.example.com", 443, "/a?b=%2F")),
        ("https://img.example.com", RemoteUrl("https", "img.example.com", 443, "/")),
        ("https://a.b.cdn.example.org/x", RemoteUrl("https", "a.b.cdn.example.org", 443, "/x")),
        ("http://store:9000/x", RemoteUrl("http", "store", 9000, "/x")),
        ("https://xn--bcher-kva.example/", RemoteUrl("https", "xn--bcher-kva.example", 443, "/")),
    ],
)
def test_a_listed_url_is_taken_apart(url: str, expected: RemoteUrl) -> None:
    assert LISTED.check_url(url, "f") == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://img.example.com/a.png",  # the list means HTTPS
        "https://img.example.com:8443/a.png",
        "https://example.com/",
        "https://img.example.com.evil.net/",
        "https://evil-img.example.com/",
        "https://cdn.example.org/",  # only names below
        "https://evilcdn.example.org/",
        "http://store/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "http://2130706433/",
    ],
)
def test_another_host_is_forbidden(url: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        LISTED.check_url(url, "messages[0]")
    assert (raised.value.reason, raised.value.field) == ("IMAGE_HOST_FORBIDDEN", "messages[0]")


@pytest.mark.parametrize(
    "url",
    [
        "https://user@img.example.com/",
        "https://evil.net\\@img.example.com/",
        "https://img.example.com\\.evil.net/",
        "https://img.example.com/a b",
        "https://img.example.com/\r\nHost: evil.net",
        "https://img.example.com/ä",
        "https://img.example.com:99999/",
        "https://img.example.com:x/",
        "https:///a.png",
        "ftp://img.example.com/",
        "https://[::1/",
        "https://img.example.com/" + "a" * 8192,
        "https://" + "a" * 64 + ".cdn.example.org/",
    ],
)
def test_a_url_that_parsers_may_read_differently_is_invalid(url: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        LISTED.check_url(url, "f")
    assert raised.value.reason == "BAD_IMAGE_URL"
    assert "example" not in raised.value.message


def test_without_a_list_every_url_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="data: URL") as raised:
        ImageHosts([], []).check_url("https://img.example.com/", "f")
    assert raised.value.reason == "IMAGE_URLS_DISABLED"


PUBLIC = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1"),
    *("ff02::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::808:808"),
    *("2002:a00:1::1", "2001::1", "2001:db8::1", "ff0e::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert LISTED.allows_address(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_other_addresses_are_not(address: str) -> None:
    """Nor those that stand for one."""
    assert not LISTED.allows_address(address)


def test_the_operator_may_allow_private_networks() -> None:
    hosts = ImageHosts(["store"], ["10.1.0.0/16", "fd00::/8"])
    allowed = ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "8.8.8.8")
    assert [hosts.allows_address(address) for address in (*allowed, "10.2.0.1", "127.0.0.1")] == [True] * 4 + [
        False
    ] * 2


@pytest.mark.parametrize(
    "entry", ["", "ftp://a", "https://a/b", "a/b", "user@a", "https://", "a:x", "a?b", "*", "a.*.b"]
)
def test_a_bad_entry_of_the_list_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"must be hosts|Port|port"):
        ImageHosts([entry], [])


def test_a_bad_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1"):
        ImageHosts([], ["10.0.0.1/8"])
