package addressing

import (
	"net/netip"
	"testing"
)

func TestSpecial(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1": "", "192.0.2.1": "", "8.8.8.8": "", "100.64.0.1": "", "2001:db8::1": "", "fd00::1": "", "::ffff:10.0.0.1": "",
		"0.0.0.0": "the unspecified address", "::": "the unspecified address", "0.1.2.3": "a reserved address",
		"127.0.0.1": "a loopback address", "127.9.9.9": "a loopback address", "::1": "a loopback address", "::ffff:127.0.0.1": "a loopback address",
		"224.0.0.1": "a multicast address", "239.255.255.250": "a multicast address", "ff02::1": "a multicast address", "ff05::2": "a multicast address",
		"169.254.169.254": "a link-local address", "fe80::1": "a link-local address", "fe80::1%eth0": "a link-local address",
		"::ffff:169.254.169.254": "a link-local address",
		"::127.0.0.1":            "a reserved address", "::10.0.0.1": "a reserved address",
		"64:ff9b::8.8.8.8": "", "64:ff9b::127.0.0.1": "a loopback address", "64:ff9b::169.254.169.254": "a link-local address",
		"::ffff:0:10.0.0.1": "", "::ffff:0:0.0.0.1": "a reserved address", "2002:808:808::1": "", "2002:7f00:1::1": "a loopback address",
		"240.0.0.1": "a reserved address", "255.255.255.255": "a reserved address",
	} {
		if got := Special(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
	if got := Special(netip.Addr{}); got == "" {
		t.Error("the zero Addr passes for a host's address")
	}
	for _, p := range Metadata {
		if p != p.Masked() || Special(p.Addr()) != "" {
			t.Errorf("%s is not a range, or %s anyway", p, Special(p.Addr()))
		}
	}
}

func TestPrivate(t *testing.T) {
	for text, want := range map[string]bool{
		"10.0.0.0/8": true, "10.244.1.0/24": true, "172.31.0.1/32": true, "192.168.0.0/16": true, "100.64.0.0/10": true, "fd00::1/128": true, "fc00::/7": true,
		"0.0.0.0/0": false, "10.0.0.0/7": false, "172.32.0.0/16": false, "172.16.0.0/11": false, "8.8.8.8/32": false, "2001:db8::/32": false, "::/0": false, "100.0.0.0/8": false,
	} {
		if got := Private(netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s is private: %v, want %v", text, got, want)
		}
	}
	if w := Whole(netip.MustParseAddr("fd00::1")); w.String() != "fd00::1/128" {
		t.Errorf("got %s", w)
	}
}
