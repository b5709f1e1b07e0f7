package stock

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	ourPods   = netip.MustParsePrefix("10.1.1.0/24")
	theirPods = netip.MustParsePrefix("10.1.2.0/24")
)

// udp makes an IPv4 packet with n bytes of payload.
func udp(src, dst netip.Addr, n int) []byte {
	ip := make([]byte, 28+n)
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, byte(packet.UDP)
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
	binary.BigEndian.PutUint16(ip[24:], uint16(8+n))
	for i := range n {
		ip[28+i] = byte(i)
	}
	return ip
}

// The unmodified device decrypts what a Mesh sent, and the Mesh what the device sent.
func TestInteroperates(t *testing.T) {
	ours, theirs := overlay.NewPrivateKey(), overlay.NewPrivateKey()
	got := make(chan []byte, 64)
	mesh, err := overlay.New(overlay.Options{
		PrivateKey: ours, StackAddrs: []netip.Addr{ourPods.Addr().Next()}, Logger: slog.New(slog.DiscardHandler),
		Receive: func(_ uint64, packets [][]byte) {
			for _, p := range packets {
				got <- bytes.Clone(p)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer mesh.Close()
	loopback := func(port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	}

	ctx, cancel := context.WithCancel(t.Context())
	ch, ready, ended := tuntest.NewChannelTUN(), make(chan Device, 1), make(chan error, 1)
	go func() {
		ended <- run(ctx, Config{
			PrivateKey: theirs, Logger: slog.New(slog.DiscardHandler), Ready: func(d Device) { ready <- d },
			Peers: []Peer{{PublicKey: ours.Public(), Endpoint: loopback(mesh.Port()), AllowedIPs: []netip.Prefix{ourPods}}},
		}, ch.TUN())
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	dev := <-ready
	if dev.Port == 0 || dev.Name == "" {
		t.Fatalf("ready with %+v", dev)
	}
	err = mesh.Set(overlay.Config{Peers: []overlay.Peer{{
		ID: 2, Name: "stock", PublicKey: theirs.Public(), Endpoint: loopback(dev.Port),
		Prefixes: []netip.Prefix{theirPods}, StackAddrs: []netip.Addr{theirPods.Addr().Next()},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := ourPods.Addr().Next().Next(), theirPods.Addr().Next().Next()

	var p packet.Packet
	want := udp(a, b, 1000)
	if f := p.ParseIP(bytes.Clone(want)); f != packet.Good {
		t.Fatalf("fault %d", f)
	}
	mesh.Send(&p, 2, nil)
	for probes := 0; ; {
		select {
		case ip := <-ch.Inbound:
			if ip[9] == byte(packet.ICMPv4) { // a path probe, an ordinary ping to a stock peer
				probes++
				continue
			}
			if !bytes.Equal(ip, want) {
				t.Fatalf("the stock device decrypted %x, want %x", ip, want)
			}
		case <-time.After(await.Patience):
			t.Fatalf("the stock device got nothing but %d probes", probes)
		}
		break
	}
	want = udp(b, a, 900)
	for sent := false; ; {
		select {
		case ch.Outbound <- want:
			sent = true
		case <-ch.Inbound:
			continue
		case <-time.After(await.Patience):
			t.Fatal("the stock device takes nothing")
		}
		if sent {
			break
		}
	}
	for {
		select {
		case ip := <-got:
			if !bytes.Equal(ip, want) {
				t.Fatalf("we decrypted %x, want %x", ip, want)
			}
			return
		case <-ch.Inbound:
		case <-time.After(await.Patience):
			t.Fatal("nothing came from the stock device")
		}
	}
}
