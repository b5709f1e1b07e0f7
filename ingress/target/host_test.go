package target

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestValidHost(t *testing.T) {
	for host, want := range map[string]bool{
		"": true, "a": true, "a.example": true, "A.Example.": true, "a_b.example": true, "a.example:80": true, "a.example:": true,
		"10.0.0.1": true, "10.0.0.1:8080": true, "[::1]": true, "[2001:db8::1]:443": true, "[::ffff:10.0.0.1]:1": true,
		":80": false, "a.example:abc": false, "a.example:99999": false, "a.example:0": false, "a.example:-1": false, "a.example:80:80": false, "a.example:+80": false,
		"::1": false, "[::1": false, "::1]": false, "[]": false, "[a.example]": false, "[a.example]b.example": false, "[::1]b.example": false, "[::1]:b": false,
		"[fe80::1%25eth0]": false, "[10.0.0.1]": false, "[v1.x]": false, "a/b": false, "a\\b": false, "a?b": false, "a#b": false, "u@a": false, "a b": false, "a,b": false,
		"%61.example": false, "a\x00": false, "a\n": false, "\u00e9.example": false, "a\"b": false, "a<b>": false, "[[::1]]": false,
	} {
		if got := ValidHost(host); got != want {
			t.Errorf("ValidHost(%q) is %v", host, got)
		}
	}
}

// FuzzValidHost compares with what the standard library makes of hosts that are valid.
func FuzzValidHost(f *testing.F) {
	for _, host := range []string{"a:80", "[::1]:80", "a.example:abc", "[a]b", "::1"} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if !ValidHost(host) || host == "" {
			return
		}
		name, port := host, ""
		if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
			var err error
			if name, port, err = net.SplitHostPort(host); err != nil {
				t.Fatalf("%q: %v", host, err)
			}
		} else if strings.HasPrefix(host, "[") {
			name = host[1 : len(host)-1]
		}
		if strings.ContainsAny(port, ":[]") || strings.ContainsAny(name, "[]") || name == "" {
			t.Fatalf("%q is name %q, port %q", host, name, port)
		}
		if _, err := netip.ParseAddr(name); strings.HasPrefix(host, "[") && err != nil {
			t.Fatalf("%q: %v", host, err)
		}
	})
}
