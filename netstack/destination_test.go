package netstack

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"testing"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

func TestParseDestination(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.0/24":         "192.0.2.0/24",
		"192.0.2.7":            "192.0.2.7/32",
		"2001:db8::7":          "2001:db8::7/128",
		"2001:db8::/64":        "2001:db8::/64",
		"192.0.2.0/24:80":      "192.0.2.0/24:80",
		"2001:db8::7/128:443":  "2001:db8::7/128:443",
		"":                     "",
		"metadata":             "",
		"192.0.2.7:80":         "",
		"192.0.2.7/24":         "",
		"192.0.2.0/33":         "",
		"192.0.2.0/24:0":       "",
		"192.0.2.0/24:65536":   "",
		"192.0.2.0/24:":        "",
		"fe80::1%eth0":         "",
		"192.0.2.0/24:80:80":   "",
		"::ffff:192.0.2.0/120": "",
	} {
		d, err := ParseDestination(text)
		if (err == nil) != (want != "") || err == nil && d.String() != want {
			t.Errorf("%q is %v, %v; want %q", text, d, err, want)
		}
	}
	for _, d := range MetadataServers {
		if again, err := ParseDestination(d.String()); err != nil || again != d {
			t.Errorf("%s is read as %v, %v", d, again, err)
		}
	}
}

// TestDestinations compares the compiled form with a search through the list.
func TestDestinations(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	addr := func() netip.Addr {
		if r.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(r.IntN(3)), byte(r.IntN(3)), byte(r.IntN(3))})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(r.IntN(3)), 15: byte(r.IntN(3))})
	}
	found := 0
	for range 300 {
		list := make([]Destination, r.IntN(5))
		for i := range list {
			a := addr()
			p, _ := a.Prefix(max(0, a.BitLen()-[]int{0, 0, 8, 16, 24, 128}[r.IntN(6)]))
			list[i] = Destination{p, []uint16{0, 53, 80}[r.IntN(3)]}
		}
		ds := destinationsOf(list)
		for range 50 {
			tuple := packet.Tuple{Dst: packet.AddrFrom(addr()), DstPort: []uint16{0, 53, 80}[r.IntN(3)], Proto: []packet.Proto{packet.TCP, packet.UDP, packet.ICMPv4}[r.IntN(3)]}
			want := false
			for _, d := range list {
				ports := d.Port == 0 || d.Port == tuple.DstPort && tuple.Proto != packet.ICMPv4
				want = want || ports && d.Range.Contains(tuple.Dst.Netip())
			}
			if got := ds.has(&tuple); got != want {
				t.Fatalf("%v has %s:%d of protocol %d: %v, want %v", list, tuple.Dst, tuple.DstPort, tuple.Proto, got, want)
			}
			if want {
				found++
			}
		}
	}
	if found < 1000 {
		t.Errorf("only %d of 15000 tuples were inside", found)
	}
}

// TestDenyEgress: packets of pods to denied destinations are refused at once, and no other packets are.
func TestDenyEgress(t *testing.T) {
	const S = packet.SYN
	for _, c := range []struct {
		name   string
		packet netstacktest.Spec
		answer string
	}{
		{"TCP", segment("10.244.1.10:1000", "100.100.100.200:80", S), "tcp 100.100.100.200:80 > 10.244.1.10:1000 RA"},
		{"TCP in the middle", segment("10.244.1.10:1000", "100.100.100.200:80", packet.ACK), "tcp 100.100.100.200:80 > 10.244.1.10:1000 R"},
		{"UDP", datagram("10.244.1.10:1000", "192.0.0.192:80"), "icmp 3/13 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 192.0.0.192:80"},
		{"ping", echo("10.244.1.10:7", "100.100.100.200:0", 8), "icmp 3/13 10.244.1.1 > 10.244.1.10 about 10.244.1.10:7 > 100.100.100.200:7"},
		{"IPv6", segment("[fd00:10:244:1::10]:1000", "[fd00:ec2::254]:80", S), "tcp [fd00:ec2::254]:80 > [fd00:10:244:1::10]:1000 RA"},
		{"a port", segment("10.244.1.10:1000", "168.63.129.16:80", S), "tcp 168.63.129.16:80 > 10.244.1.10:1000 RA"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.config.DenyEgress = append([]Destination{{Range: netip.MustParsePrefix("10.0.0.0/8")}}, MetadataServers...)
			w.set()
			w.from("a", c.packet)
			w.expect("a", c.answer)
			w.dropped(EgressDenied)
			// Pods with an address in a denied range are not outside.
			w.exchange(exchange{"a", datagram("10.244.1.10:1000", "10.244.1.11:80"), "b", "udp 10.244.1.10:1000 > 10.244.1.11:80"})
			w.exchange(exchange{"a", datagram("10.244.1.10:1000", "10.244.2.10:80"), "link", "node-2 udp 10.244.1.10:1000 > 10.244.2.10:80"})
		})
	}
}

// TestMetadataServers: neighbouring addresses and ports are not denied.
func TestMetadataServers(t *testing.T) {
	ds := destinationsOf(MetadataServers)
	for _, s := range []netstacktest.Spec{
		segment("10.244.1.10:1000", "168.63.129.16:53", 0), datagram("10.244.1.10:1000", "168.63.129.16:53"),
		segment("10.244.1.10:1000", "100.100.100.201:80", 0), segment("10.244.1.10:1000", "100.100.2.136:53", 0),
		segment("[fd00::1]:1000", "[fd00:ec2::253]:53", 0), segment("[fd00::1]:1000", "[fd00:ec2::23]:80", 0),
	} {
		var p packet.Packet
		if p.ParseIP(s.IP()) != packet.Good || ds.has(&p.Tuple) {
			t.Errorf("%s is denied", s.Dst)
		}
	}
}

// TestHostAddrs: an address that the host has and its Node does not name is the host's, whoever else claims it. Pods
// reach it through the host TAP, with their own address, and not at all where there is no host TAP.
func TestHostAddrs(t *testing.T) {
	const S, SA = packet.SYN, packet.SYN | packet.ACK
	with := func(t *testing.T) *world {
		w := newWorld(t)
		w.config.HostAddrs = addresstest.Addrs("172.31.0.11", "172.17.0.1", "2001:db8::1", "127.0.0.1", "127.0.0.53", "::1", "fe80::1", "10.96.0.1", "10.244.1.2", "10.244.1.10")
		w.config.Peers[0].NodeAddrs = addresstest.Addrs("172.31.0.12", "172.17.0.1")
		w.set()
		return w
	}
	for name, steps := range map[string][]step{
		"a pod": {
			{"a", segment("10.244.1.10:1000", "172.17.0.1:22", S), "host", "tcp 10.244.1.10:1000 > 172.17.0.1:22 S", 0},
			{"host", segment("172.17.0.1:22", "10.244.1.10:1000", SA), "a", "tcp 172.17.0.1:22 > 10.244.1.10:1000 SA", 0},
		},
		"a pod, IPv6": {
			{"a", segment("[fd00:10:244:1::10]:1000", "[2001:db8::1]:22", S), "host", "tcp [fd00:10:244:1::10]:1000 > [2001:db8::1]:22 S", 0},
		},
		"an error of the host's": {
			{"a", datagram("10.244.1.10:1000", "172.17.0.1:22"), "host", "udp 10.244.1.10:1000 > 172.17.0.1:22", 0},
			{"host", icmp("172.17.0.1", "10.244.1.10", 3, 3, datagram("10.244.1.10:1000", "172.17.0.1:22").IP()), "a", "icmp 3/3 172.17.0.1 > 10.244.1.10 about 10.244.1.10:1000 > 172.17.0.1:22", 0},
		},
		"the host, to another node, which does not know the address": {
			{"host", segment("172.17.0.1:1000", "10.244.2.10:80", S), "", "", NoRoute},
		},
		"the host's loopback stays nowhere": {
			{"a", datagram("10.244.1.10:1000", "127.0.0.53:53"), "", "", NoRoute},
		},
		"a Service's address on a dummy interface stays the Service's": {
			{"a", segment("10.244.1.10:1000", "10.96.0.1:80", S), "b", "tcp 10.244.1.10:1000 > 10.244.1.11:8080 S", 0},
		},
		"an address that is a pod's stays the pod's": {
			{"host", segment("10.244.1.10:1000", "10.244.1.11:80", S), "", "", Spoofed},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := with(t)
			for _, s := range steps {
				w.from(s.from, s.packet)
				if s.where != "" {
					w.expect(s.where, s.want)
				}
				if s.reason != NotDropped {
					w.dropped(s.reason)
				}
			}
			w.silent()
		})
	}
	t.Run("without a host TAP", func(t *testing.T) {
		w := with(t)
		w.path.Detach("host")
		w.from("a", datagram("10.244.1.10:1000", "172.17.0.1:22"))
		w.expect("a", "icmp 3/1 10.244.1.1 > 10.244.1.10 about 10.244.1.10:1000 > 172.17.0.1:22")
		w.dropped(NoRoute)
	})
	t.Run("a local client of a NodePort, to another node", func(t *testing.T) {
		w := with(t)
		ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
		defer cancel()
		conn, err := w.path.Stack().Dial(ctx, "udp", ap("172.17.0.1:5000"), ap("10.244.2.10:80"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		w.expect("link", "node-2 encap 10.244.1.1 > 10.244.2.1: udp 172.17.0.1:5000 > 10.244.2.10:80")
	})
}

// Pods cannot reach the addresses at which clouds hand out credentials; of Azure's, the ports that do so are denied.
func TestAllMetadataServers(t *testing.T) {
	ds := destinationsOf(MetadataServers)
	for _, p := range addressing.Metadata {
		to := packet.Tuple{Dst: p.Addr().As16(), DstPort: 80, Proto: packet.TCP}
		if !ds.has(&to) {
			t.Errorf("pods may dial %s", p)
		}
		to.DstPort, to.Proto = 53, packet.UDP
		if azure := p == azureWireServer; ds.has(&to) == azure {
			t.Errorf("%s: names may be asked for: %v", p, !ds.has(&to))
		}
	}
	if len(MetadataServers) != len(addressing.Metadata)+1 {
		t.Errorf("%d destinations for %d addresses", len(MetadataServers), len(addressing.Metadata))
	}
}
